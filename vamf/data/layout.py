"""What is wrong with the files of a published data set that somebody laid out by hand."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vamf.files import GZIP, PICKLE, seems, shown

DEPTH = 4
"""Folders below the root in which files are looked for that are not where they must be."""

LOOKED_AT = 100_000
"""Files below a root that are looked at for them: it may hold other data too."""
FETCH = "data.download=true fetches it"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set's files must lie below a root, and what each must be."""

    folder: str
    files: Mapping[str, Callable[[Path], str]]
    """By name, what is wrong with the content of one that is there, or nothing."""
    archive: str = ""
    """The file that holds all of them."""
    verified: bool = False
    """Whether torchvision fetches anew what is damaged, besides what is not there."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a data set cannot be read, and what helps."""

    text: str
    remedy: str
    missing: bool = False
    """Whether a file is not there, under its own name."""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"


def fault(layout: Layout, root: Path) -> Fault | None:
    """What is wrong with the first file of which something is."""
    for name, check in layout.files.items():
        path = root / layout.folder / name
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return _missing(layout, root, name)
        except OSError as error:
            return Fault(text=f"{shown(path)}: {error.strerror}", remedy="it must be readable")
        if found := _wrong(path, check):
            return found
    return None


def _wrong(path: Path, check: Callable[[Path], str]) -> Fault | None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        return Fault(text=f"{shown(path)}: {error.strerror}", remedy="it must be a readable file")
    kind = seems(path)
    reason = kind if kind and kind != PICKLE else check(path)
    remedy = f"delete it, and {FETCH}"
    return Fault(text=f"{shown(path)}: {reason}", remedy=remedy) if reason else None


def _missing(layout: Layout, root: Path, name: str) -> Fault:
    """Where it is instead, or in what, or under what name."""
    folder = root / layout.folder
    around = {path.name: path for path in reversed([*_around(root, layout.folder)])}
    dotted = name.replace("-idx", ".idx")
    for other in (name, dotted, f"{name}.gz", f"{dotted}.gz", layout.archive):
        if other in around:
            text = _instead(around[other], folder / name, layout)
            return Fault(text=text, remedy=f"or {FETCH}", missing=True)
    there = sum((folder / file).exists() for file in layout.files)
    among = f", though {there} of {len(layout.files)} files are" if there else ""
    return Fault(text=f"{shown(folder / name)} is not there{among}", remedy=FETCH, missing=True)


def _instead(found: Path, wanted: Path, layout: Layout) -> str:
    told = shown(found)
    if found.suffix == ".gz":
        kind = seems(found)
        if kind != GZIP:
            return f"{told} is no gzip file: {kind or 'it seems to be damaged'}; delete it"
        where = wanted.parents[1] if found.name == layout.archive else wanted.parent
        return f"{told} is not unpacked; unpack it in {shown(where)}"
    if found.name != wanted.name:
        return f"{told} has another name; rename it to {shown(wanted)}"
    parts = Path(layout.folder).parts
    if found.parent.parts[-len(parts) :] == parts:
        root = found.parents[len(parts)]
        return f"{told} lies below another folder; set data.root={shown(root)}"
    return f"{told} lies in another folder; move it to {shown(wanted)}"


def _around(root: Path, folder: str) -> Iterator[Path]:
    """Files in the folder itself, below the root, and beside it; the nearest come first."""
    for place in (root / folder, root, root.parent / folder):
        yield from islice(_below(place), LOOKED_AT)


def _below(place: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(place):
        if len(Path(here).relative_to(place).parts) >= DEPTH:
            folders.clear()
        yield from (Path(here) / file for file in files)
