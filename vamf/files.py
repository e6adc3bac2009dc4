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


def local(folder: Path) -> Path:
    """A folder's absolute path, also of one written file:///... or ~/..."""
    text = str(folder)
    if text.startswith("file:/"):
        return Path(f"/{text[5:].lstrip('/')}")
    return expanded(folder).resolve()


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
