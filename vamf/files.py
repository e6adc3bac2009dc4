"""Writes files atomically; resolves, claims and identifies paths."""

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
    """A temporary path that is renamed to ``path`` at the end of the block.

    A reader sees the old file or the complete new one. After an exception the file is deleted.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: a reader sees the old file or the complete new one.

    ``content`` is a text, bytes, or a function that writes to the binary file it is given.
    """
    with written_aside(path) as aside, aside.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def expanded(path: Path) -> Path:
    """The path with ``~`` replaced by the user's home; ValueError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"~ must stand for a user's home; got {path}") from None


def home() -> Path:
    """The user's home; ValueError if there is none, as for a container's user id without a name."""
    try:
        return Path.home()
    except RuntimeError:
        raise ValueError(
            f"HOME must name a folder, in which libraries keep files; user {os.getuid()} has none"
        ) from None


def local(folder: Path) -> Path:
    """A folder's absolute path; it may be given as file:///... or ~/..."""
    text = str(folder)
    if text.startswith("file:/"):
        return Path(f"/{text[5:].lstrip('/')}")
    return expanded(folder).resolve()


def make_folder(folder: Path, above: int) -> None:
    """Creates a folder and at most ``above`` of its parents; FileNotFoundError if more are missing.

    This avoids writing below the mount point of a file system that is gone.
    """
    for path in (*reversed(folder.parents[:above]), folder):
        path.mkdir(exist_ok=True)


def claimed(folder: Path, *, numbered: bool) -> Path:
    """Creates a new folder of that name, exclusively for this process.

    If it exists and ``numbered`` is set, the name is NAME-2 or the next free one; otherwise
    ValueError is raised.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    more = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    for path in chain([folder], more if numbered else ()):
        with suppress(FileExistsError):  # if two processes try, only one creates it
            path.mkdir()
            return path
    raise ValueError(f"{folder} exists; choose another --name, or --resume it")


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's content, in hexadecimal."""
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
"""Descriptions of file formats, by their first bytes."""


def seems(path: Path) -> str:
    """What format a file seems to have, or why it cannot be read; empty if unknown."""
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
    """A path for printing on one line: escapes what is not UTF-8 or not printable."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
