"""Lists the image files below a folder."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image

from vamf.files import shown

DRAWINGS = {"EPS", "WMF"}
"""Vector formats, which Pillow passes to another program."""
CONTAINERS = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}
"""Formats that Pillow recognises but cannot decode."""
MEASUREMENTS = {"FITS", "IPTC", "MCIDAS", "SPIDER"}
"""Formats whose levels are signed, or have no declared range."""
NO_PICTURES = DRAWINGS | CONTAINERS | MEASUREMENTS
"""Formats of Pillow that are not treated as images."""
SURPLUS = {"__MACOSX", "@eaDir", "lost+found"}
"""Folders that systems and archives create; ignored, as are names that begin with a dot."""
NAMED = 5
"""How many endings of other files a message names."""


def formats() -> tuple[str, ...]:
    """The image formats that the installed Pillow can open."""
    Image.init()
    return _image_formats(tuple(Image.ID))


@cache
def _image_formats(known: tuple[str, ...]) -> tuple[str, ...]:
    """The most common formats come first, as Pillow tries them in this order."""
    usable = [name for name in known if name in Image.OPEN and name not in NO_PICTURES]
    return tuple(sorted(usable, key=lambda name: name not in ("JPEG", "PNG", "WEBP")))


def endings() -> frozenset[str]:
    """The endings of such files in lower case; Pillow opens MPO as JPEG."""
    known = {*formats(), "MPO"}
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """All images below a folder by their endings, and all other files; both sorted by name.

    Symbolic links are followed; broken ones are listed. Names that begin with a dot, and
    ``SURPLUS``, are ignored. Raises ValueError if a folder cannot be listed.
    """
    known = endings()
    images: list[Path] = []
    others: list[Path] = []
    for path in _below(folder, frozenset()):
        (images if path.suffix.lower() in known else others).append(path)
    return sorted(images), sorted(others)


def _below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """``above`` are the parent folders: a link back to one of them is not followed."""
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
    """The kind of a link's target; a broken link counts as a file, so that messages name it."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError:
        return "file"
    return "other"


def format_names(files: Sequence[Path]) -> str:
    """The endings of files with their counts, the most frequent first."""
    counts = Counter(path.suffix.lower() or path.name for path in files).most_common()
    parts = [f"{shown(Path(ending))} {count}" for ending, count in counts[:NAMED]]
    return ", ".join(parts) + ", ..." * (len(counts) > NAMED)
