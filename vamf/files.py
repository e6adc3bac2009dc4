"""Files that are whole or not there."""

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Writes aside and renames: a reader meets all of it or nothing.

    ``content`` is a text, or writes to the binary file that it is given.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with aside.open("wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def local(folder: Path) -> Path:
    """A folder's absolute path, also of one written file:///..."""
    text = str(folder)
    return Path(f"/{text[5:].lstrip('/')}") if text.startswith("file:/") else folder.resolve()


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
