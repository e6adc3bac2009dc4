"""Reads and writes object stores, and parses their addresses."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from ctypes import py_object, pythonapi
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from vamf.errors import StoreError, first_line
from vamf.files import local, write_whole
from vamf.redact import redacted

ADDRESS = re.compile(r"[a-z][a-z0-9+]+://?")
"""The start of a store's address; a ``Path`` keeps one of its two slashes."""

PART = 1 << 25
"""Bytes that are downloaded at once."""

PATIENCE_S = 30
"""Seconds during which Google's library retries."""

BUCKETS = ("s3", "gcs", "abfs")
"""pyarrow's names of the stores without folders."""

AT_CLOSE = ("s3", "gcs")
"""The stores in which an object is replaced only when its stream is closed."""

PARTIAL = re.compile(r"(.*/)?\.[^/]*\.partial")
"""Names of incomplete objects: being written by another process, or left by a killed one."""


@dataclass(frozen=True)
class Store:
    """A location in an object store: below it are objects with names such as ``a/b``.

    pyarrow supports s3, gs, abfs and hdfs, with the credentials that their own tools use; any other
    scheme needs its fsspec implementation installed. Methods raise StoreError, and ValueError for
    an address that no installed library supports.
    """

    url: str = field(repr=False)
    """The address; it may contain credentials."""

    @classmethod
    def of(cls, place: str) -> Self | None:
        """The store of an address; None for a folder, also if it is written file:///...

        Does not contact the store. Raises ValueError for an address without a bucket.
        """
        if not ADDRESS.match(place) or place.startswith("file:/"):
            return None
        store = cls(re.sub(r"(?<=[a-z0-9]):/(?=[^/])", "://", place))
        if not store.bucket:
            raise ValueError(f"the address of a store must name its bucket; got {store}")
        return store

    def __str__(self) -> str:
        return redacted(self.url)

    def __truediv__(self, name: str) -> Self:
        parts = urlsplit(self.url)
        return type(self)(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")))

    @property
    def bucket(self) -> str:
        """The bucket or host in the address, without a user."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def path(self) -> PurePosixPath:
        """The path in the bucket."""
        return PurePosixPath(urlsplit(self.url).path.strip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def parent(self) -> Self:
        """The parent location."""
        parts = urlsplit(self.url)
        return type(self)(urlunsplit(parts._replace(path=str("/" / self.path.parent))))

    def exists(self) -> bool:
        """Whether there is an object here or below; ValueError if the store does not answer."""
        try:
            return bool(self.names())
        except StoreError as error:
            raise ValueError(f"the storage must answer; got {error}") from None

    def names(self) -> list[str]:
        """The names of all objects below, sorted."""
        from pyarrow.fs import FileSelector, FileType

        files, root = _open(self.url)
        with self._as_store_error():
            _forget_listings(files)
            found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        inside = [info.path for info in found if info.type == FileType.File]
        names = (path.removeprefix(f"{root}/") for path in inside)
        return sorted(name for name in names if not PARTIAL.fullmatch(name))

    def read(self, name: str) -> bytes:
        """The content of an object; FileNotFoundError if there is none."""
        files, root = _open(self.url)
        with self._as_store_error(), files.open_input_stream(f"{root}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Creates or replaces an object: a reader sees the old one or the complete new one."""
        with self._writing(name) as stream:
            stream.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Creates or replaces an object atomically from a file of any size."""
        with path.open("rb") as file, self._writing(name) as stream:
            while part := file.read(PART):
                stream.write(part)

    def download(self, name: str, path: Path) -> None:
        """Creates or replaces a file atomically; FileNotFoundError if there is no such object."""
        files, root = _open(self.url)

        def copy(file: BinaryIO) -> None:
            while part := stream.read(PART):
                file.write(part)

        with self._as_store_error(), files.open_input_stream(f"{root}/{name}") as stream:
            write_whole(path, copy)

    def delete(self, *names: str) -> None:
        """Deletes objects in the given order; missing ones are ignored."""
        files, root = _open(self.url)
        for name in names:
            with suppress(FileNotFoundError), self._as_store_error():
                files.delete_file(f"{root}/{name}")

    def remove(self, name: str) -> None:
        """Deletes all objects below a name."""
        files, root = _open(self.url)
        with suppress(FileNotFoundError), self._as_store_error():
            files.delete_dir(f"{root}/{name}")

    @contextmanager
    def probe_object(self) -> Iterator[str]:
        """Creates an object within the block; yields its name; other machines test access to it."""
        name = f".seen_{uuid4().hex}"
        self.write(name, b"seen")
        try:
            yield name
        finally:
            self.delete(name)

    def claim(self) -> None:
        """Reserves this location; ValueError if it is not empty or another process is reserving it.

        Each process writes an object and then lists all objects: of several processes at most one
        finds only its own. Object stores have no atomic creation of folders.
        """
        mine = f".begun_{uuid4().hex}"
        try:
            self.write(mine, b"begun")
            if self.names() == [mine]:
                return
            self.delete(mine)
        except StoreError as error:
            raise ValueError(f"the storage must be writable; got {error}") from None
        raise ValueError(f"{self} exists; choose another --name, or --resume it")

    def check(self) -> None:
        """Raises ValueError unless objects can be created, listed and deleted here."""
        try:
            with self.probe_object() as name:
                listed = name in self.names()
        except OSError as error:
            raise ValueError(f"the storage must be writable; got {error}") from None
        if not listed:
            raise ValueError(f"the storage must list what it holds at once; {self} does not")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        files, root = _open(self.url)
        path = f"{root}/{name}"
        with self._as_store_error():
            if files.type_name not in BUCKETS:  # an object store would keep an empty object
                files.create_dir(str(PurePosixPath(path).parent))
            with _replaced(files, path) as stream:
                yield stream

    @contextmanager
    def _as_store_error(self) -> Iterator[None]:
        """Converts the errors of all libraries to StoreError, without credentials."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StoreError(f"{self}: {_reason(error)}") from None


StoragePath = Path | Store
"""The location of runs: a folder or an object store."""


def read(place: StoragePath, name: str) -> bytes:
    """The content of a file or object; FileNotFoundError if there is none."""
    return place.read(name) if isinstance(place, Store) else (place / name).read_bytes()


def write(place: StoragePath, name: str, text: str) -> None:
    """Creates or replaces a file or object: a reader sees the old one or the complete new one."""
    if isinstance(place, Store):
        place.write(name, text.encode())
    else:
        write_whole(place / name, text)


def names(place: StoragePath, pattern: str) -> list[str]:
    """The names of the files or objects that match a pattern such as ``a*/b``, sorted."""
    if isinstance(place, Store):
        return [name for name in place.names() if PurePosixPath(f"/{name}").match(f"/{pattern}")]
    return sorted(path.relative_to(place).as_posix() for path in place.glob(pattern))


def storage_path(text: str) -> StoragePath:
    """The folder or store of a path or address; ValueError for an invalid address."""
    return Store.of(text) or local(Path(text))


def absolute(path: Path) -> Path:
    """A path that is valid in any working folder; a store's address is unchanged.

    Relative paths are resolved against this process's working folder.
    """
    text = str(path)
    if ADDRESS.match(text):
        return local(path) if text.startswith("file:/") else path
    return path.absolute()


@cache
def _open(url: str) -> tuple[Any, str]:
    """A store's file system object, and the path in it.

    Raises ValueError if no library supports it, StoreError if it does not answer.
    """
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        return FileSystem.from_uri(_with_short_retries(url))
    except OSError as error:
        raise StoreError(f"{redacted(url)}: {_reason(error)}") from None
    except ValueError as error:
        if "Unrecognized filesystem type" not in str(error):
            raise ValueError(f"no store at {redacted(url)}: {_reason(error)}") from None
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(url)
    except Exception as error:  # each implementation has its own
        raise ValueError(f"no store at {redacted(url)}: {_reason(error)}") from None
    if "memory" in files.protocol:
        raise ValueError(f"no store at {url}: it would end with this process")
    return PyFileSystem(FSSpecHandler(files)), path


def _replaced(files: Any, path: str) -> AbstractContextManager[Any]:
    """A stream; its content replaces ``path`` when the block ends, unless it raises."""
    return _completed(files, path) if files.type_name in AT_CLOSE else _renamed(files, path)


@contextmanager
def _completed(files: Any, path: str) -> Iterator[Any]:
    stream = files.open_output_stream(path)
    try:
        yield stream
    except BaseException:
        _abandon(stream)
        raise
    stream.close()


def _abandon(stream: Any) -> None:
    """Leaves an upload incomplete, as a killed process does.

    pyarrow cannot abort an upload from Python. Closing or freeing its stream would complete it,
    also at the interpreter's exit. So the stream is never freed, which costs the part it holds (10
    MB).
    """
    try:
        stream.flush()
    except Exception:  # a failed stream completes nothing
        with suppress(Exception):
            stream.close()
    else:
        pythonapi.Py_IncRef(py_object(stream))


@contextmanager
def _renamed(files: Any, path: str) -> Iterator[Any]:
    """For stores that truncate an object on opening: writes another object, then renames it."""
    final = PurePosixPath(path)
    aside = str(final.with_name(f".{final.name}.{uuid4().hex}.partial"))
    try:
        with files.open_output_stream(aside) as stream:
            yield stream
        if files.type_name in BUCKETS:  # stores without folders cannot rename
            files.copy_file(aside, path)
            files.delete_file(aside)
        else:
            files.move(aside, path)
    except BaseException:
        with suppress(Exception):
            files.delete_file(aside)
        raise


def _with_short_retries(url: str) -> str:
    """Limits the retries of Google's library, whose default is a quarter of an hour."""
    parts = urlsplit(url)
    if parts.scheme not in ("gs", "gcs") or "retry_limit_seconds" in parts.query:
        return url
    limit = f"retry_limit_seconds={PATIENCE_S}"
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, limit]))))


def _forget_listings(files: Any) -> None:
    """Clears fsspec's cache of listings, because other machines write to the store too."""
    if handler := getattr(files, "handler", None):
        handler.fs.invalidate_cache()


def _reason(error: Exception) -> str:
    return redacted(first_line(error))[:300]
