"""Moves a file: ``python tests/helpers/uploading.py upload|download STORE NAME PATH``.

Of a file called ``breaking`` no more than 12 MB can be read. Errors of the store end it in a line.
"""

import io
import sys
from pathlib import Path, PosixPath
from typing import Any

from helpers import under_store

from vamf.errors import StoreError
from vamf.store import Store

assert under_store.Under.protocol


class Breaking(PosixPath):
    """A file that cannot be read beyond 12 MB, as when a network's disk goes away."""

    def open(self, *args: Any, **options: Any) -> Any:
        return Broken(super().open("rb").read(12_000_000))


class Broken(io.BytesIO):
    """Gives what it holds once, and then no end."""

    def read(self, size: int | None = -1) -> bytes:
        if not (part := super().read(size)):
            raise OSError(5, "Input/output error")
        return part


if __name__ == "__main__":
    what, url, name, path = sys.argv[1:]
    local = Breaking(path) if Path(path).name == "breaking" else Path(path)
    try:
        if what == "upload":
            Store(url).upload(local, name)
        else:
            Store(url).download(name, local)
    except StoreError as error:
        sys.exit(str(error))
