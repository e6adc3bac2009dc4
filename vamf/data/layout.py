"""Explains what is wrong with the files of a published data set, and how to repair it."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vamf.files import GZIP, PICKLE, seems, shown

DEPTH = 4
"""How many levels of folders below the root are searched for misplaced files."""

LOOKED_AT = 100_000
"""How many files below a root are searched: it may hold other data too."""
FETCH = "data.download=true fetches it"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set's files must be below a root, and how to check each."""

    folder: str
    files: Mapping[str, Callable[[Path], str]]
    """For each name, a function that says what is wrong with the file, empty if nothing."""
    archive: str = ""
    """Name of the archive that contains all of them."""
    verified: bool = False
    """Whether torchvision downloads damaged files again, not only missing ones."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a data set cannot be read, and the remedy."""

    text: str
    remedy: str
    missing: bool = False
    """Whether no file of the expected name exists."""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"


def fault(layout: Layout, root: Path) -> Fault | None:
    """The first fault of the files, or None if all are right."""
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
    """The fault of a missing file: names a misplaced, renamed or packed copy if there is one."""
    folder = root / layout.folder
    around = {path.name: path for path in reversed([*_around(root, layout.folder)])}
    dotted = name.replace("-idx", ".idx")
    for other in (name, dotted, f"{name}.gz", f"{dotted}.gz", layout.archive):
        if other in around:
            text = _misplaced(around[other], folder / name, layout)
            return Fault(text=text, remedy=f"or {FETCH}", missing=True)
    there = sum((folder / file).exists() for file in layout.files)
    among = f", though {there} of {len(layout.files)} files are" if there else ""
    return Fault(text=f"{shown(folder / name)} is not there{among}", remedy=FETCH, missing=True)


def _misplaced(found: Path, wanted: Path, layout: Layout) -> str:
    name = shown(found)
    if found.suffix == ".gz":
        kind = seems(found)
        if kind != GZIP:
            return f"{name} is no gzip file: {kind or 'it seems to be damaged'}; delete it"
        where = wanted.parents[1] if found.name == layout.archive else wanted.parent
        return f"{name} is not unpacked; unpack it in {shown(where)}"
    if found.name != wanted.name:
        return f"{name} has another name; rename it to {shown(wanted)}"
    parts = Path(layout.folder).parts
    if found.parent.parts[-len(parts) :] == parts:
        root = found.parents[len(parts)]
        return f"{name} lies below another folder; set data.root={shown(root)}"
    return f"{name} lies in another folder; move it to {shown(wanted)}"


def _around(root: Path, folder: str) -> Iterator[Path]:
    """Files in the folder itself, below the root, and beside the root, in this order."""
    for start in (root / folder, root, root.parent / folder):
        yield from islice(_below(start), LOOKED_AT)


def _below(start: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(start):
        if len(Path(here).relative_to(start).parts) >= DEPTH:
            folders.clear()
        yield from (Path(here) / file for file in files)
