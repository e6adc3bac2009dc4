"""Files that are whole or not there."""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, which is renamed when the block ends: a reader meets the old file or all
    of the new one. It is deleted if the block ends by an exception.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Writes aside and renames: a reader meets the old file or all of the new one.

    ``content`` is a text, or bytes, or writes to the binary file that it is given.
    """
    with written_aside(path) as aside, aside.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def expanded(path: Path) -> Path:
    """The path with ``~`` as the user's home; ValueError if nobody has that name."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"~ must stand for a user's home; got {path}") from None


def home() -> Path:
    """The user's home; ValueError if there is none, as of a container's user id without a name."""
    try:
        return Path.home()
    except RuntimeError:
        raise ValueError(
            f"HOME must name a folder, in which libraries keep files; user {os.getuid()} has none"
        ) from None


def local(folder: Path) -> Path:
    """A folder's absolute path, also of one written file:///... or ~/..."""
    text = str(folder)
    if text.startswith("file:/"):
        return Path(f"/{text[5:].lstrip('/')}")
    return expanded(folder).resolve()


def make_folder(folder: Path, above: int) -> None:
    """Makes a folder, and at most so many of those above it; FileNotFoundError if more are missing.

    What has to be in the folder of a run would else, once the run's file system is gone, be written
    below its mount point, where nobody sees it any more.
    """
    for path in (*reversed(folder.parents[:above]), folder):
        path.mkdir(exist_ok=True)


def claimed(folder: Path, *, numbered: bool) -> Path:
    """A new folder of that name, which this process alone has made.

    If there is one already, it is ``numbered``: NAME-2, or the next that is free; otherwise
    ValueError is raised.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    more = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    for path in chain([folder], more if numbered else ()):
        with suppress(FileExistsError):  # of two processes one makes it
            path.mkdir()
            return path
    raise ValueError(f"{folder} exists; choose another --name, or --resume it")


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ZIP = "it is a zip archive"
GZIP = "it is compressed by gzip"
PICKLE = "it seems to be a pickle"
KINDS = (
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, in the place of the file that `git lfs pull` fetches",
    ),
    (b"PK", ZIP),
    (b"\x1f\x8b", GZIP),
    (b"\xfd7zXZ", "it is compressed by xz"),
    (b"\x93NUMPY", "it is a single array, .npy"),
    (b"\x80", PICKLE),
    (b"%PDF", "it is a PDF"),
    (b"\x89HDF", "it is an HDF5 file"),
)
"""What files are that begin with these bytes."""


def seems(path: Path) -> str:
    """What a file in the place of another is, or why it cannot be read; nothing if not known."""
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError as error:
        return f"{error.strerror}"
    if not start:
        return "it is empty"
    if start.lstrip()[:1] == b"<":
        return "it seems to be an HTML page, as of a failed download"
    return next((kind for begin, kind in KINDS if start.startswith(begin)), "")


def shown(path: Path) -> str:
    """A path that can be printed, on one line: what is not UTF-8 or not printable is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(error: BaseException) -> str:
    """What an error says, on one line of bounded length; its kind if it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
