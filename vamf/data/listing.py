"""Which files below a folder are images."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image

from vamf.files import shown

DRAWINGS = {"EPS", "WMF"}
"""What another program would draw."""
CONTAINERS = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}
"""Known to Pillow, which cannot read what is in them."""
MEASUREMENTS = {"FITS", "IPTC", "MCIDAS", "SPIDER"}
"""Signed, or without a range."""
NO_PICTURES = DRAWINGS | CONTAINERS | MEASUREMENTS
"""Formats of Pillow's that are not taken for images."""
SURPLUS = {"__MACOSX", "@eaDir", "lost+found"}
"""Folders that systems and archives leave behind, besides those whose names begin with a dot."""
NAMED = 5
"""Endings of other files that are named."""


def formats() -> tuple[str, ...]:
    """The formats that this Pillow can open and that hold pictures."""
    Image.init()
    return _pictures(tuple(Image.ID))


@cache
def _pictures(known: tuple[str, ...]) -> tuple[str, ...]:
    """The usual ones first, as Pillow tries them in this order."""
    usable = [name for name in known if name in Image.OPEN and name not in NO_PICTURES]
    return tuple(sorted(usable, key=lambda name: name not in ("JPEG", "PNG", "WEBP")))


def endings() -> frozenset[str]:
    """The endings of such files, in small letters; MPO is a JPEG to Pillow."""
    known = {*formats(), "MPO"}
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """All images below a folder by their endings, and all other files; both sorted by name.

    Symbolic links are followed, and those that lead nowhere are listed. Names that begin with a
    dot, and ``SURPLUS``, are passed over. Raises ValueError if a folder cannot be listed.
    """
    known = endings()
    images: list[Path] = []
    others: list[Path] = []
    for path in _below(folder, frozenset()):
        (images if path.suffix.lower() in known else others).append(path)
    return sorted(images), sorted(others)


def _below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """``above`` are the folders that lead here: one that leads back to them adds nothing."""
    try:
        found = folder.stat()
        here = (found.st_dev, found.st_ino)
        entries = [] if here in above else [*os.scandir(folder)]
    except OSError as error:
        raise ValueError(
            f"folders of images must be readable; got {error.strerror} of {shown(folder)}"
        ) from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SURPLUS:
            continue
        if (kind := _kind(entry)) == "folder":
            yield from _below(folder / entry.name, above | {here})
        elif kind == "file":
            yield folder / entry.name


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "other"]:
    """Of what a link leads to; one that leads nowhere is a file, so that it is named."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError:
        return "file"
    return "other"


def told(files: Sequence[Path]) -> str:
    """How many files there are with which endings."""
    counts = Counter(path.suffix.lower() or path.name for path in files).most_common()
    parts = [f"{shown(Path(ending))} {count}" for ending, count in counts[:NAMED]]
    return ", ".join(parts) + ", ..." * (len(counts) > NAMED)
