"""Object stores in the place of folders: the one module that knows of their addresses."""

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

from vamf.files import local, write_whole
from vamf.redact import redacted

ADDRESS = re.compile(r"[a-z][a-z0-9+]+://?")
"""How the address of a store begins; a ``Path`` leaves one of the slashes."""

PART = 1 << 25
"""Bytes that are downloaded at once."""

PATIENCE_S = 30
"""Seconds for which Google's library tries again."""

BUCKETS = ("s3", "gcs", "abfs")
"""pyarrow's names of the stores in which there are no folders."""

AT_CLOSE = ("s3", "gcs")
"""Those in which an object appears when its stream is closed, and is as it was until then."""

PARTIAL = re.compile(r"(.*/)?\.[^/]*\.partial")
"""Names of objects that are being written elsewhere, or were when their process was killed."""


class StoreError(OSError):
    """A store did not do what it was asked for; says why, in one line."""


@dataclass(frozen=True)
class Store:
    """A place in an object store: below it are objects by names such as ``a/b``, whole or absent.

    pyarrow speaks s3, gs, abfs and hdfs, with the credentials that their own tools use, and any
    other scheme by the fsspec implementation that is installed. Methods raise StoreError, and
    ValueError for an address that nothing here speaks to.
    """

    url: str = field(repr=False)
    """Its address; it may hold credentials."""

    @classmethod
    def of(cls, place: str) -> Self | None:
        """The store that an address names; None for a folder, also one written file:///...

        Nothing is asked of it yet. Raises ValueError for an address without a bucket.
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
        """What of the address stands for a bucket or a host, without a user."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def path(self) -> PurePosixPath:
        """Where it is in its bucket."""
        return PurePosixPath(urlsplit(self.url).path.strip("/"))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def parent(self) -> Self:
        """The place that it is in."""
        parts = urlsplit(self.url)
        return type(self)(urlunsplit(parts._replace(path=str("/" / self.path.parent))))

    def exists(self) -> bool:
        """Whether an object is here or below; ValueError if the store does not answer."""
        try:
            return bool(self.names())
        except StoreError as error:
            raise ValueError(f"the storage must answer; got {error}") from None

    def names(self) -> list[str]:
        """The objects below, in order."""
        from pyarrow.fs import FileSelector, FileType

        files, root = _open(self.url)
        with self._telling():
            _forget_listings(files)
            found = files.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        inside = [info.path for info in found if info.type == FileType.File]
        names = (path.removeprefix(f"{root}/") for path in inside)
        return sorted(name for name in names if not PARTIAL.fullmatch(name))

    def read(self, name: str) -> bytes:
        """What an object holds; FileNotFoundError if there is none."""
        files, root = _open(self.url)
        with self._telling(), files.open_input_stream(f"{root}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces an object: whoever reads it meets the old one or all of the new one."""
        with self._writing(name) as stream:
            stream.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Makes or replaces an object as ``write`` does, from a file of any size."""
        with path.open("rb") as file, self._writing(name) as stream:
            while part := file.read(PART):
                stream.write(part)

    def download(self, name: str, path: Path) -> None:
        """Makes or replaces a file, all of it or nothing; FileNotFoundError without the object."""
        files, root = _open(self.url)

        def copy(file: BinaryIO) -> None:
            while part := stream.read(PART):
                file.write(part)

        with self._telling(), files.open_input_stream(f"{root}/{name}") as stream:
            write_whole(path, copy)

    def delete(self, *names: str) -> None:
        """Deletes objects, in this order; those gone aside."""
        files, root = _open(self.url)
        for name in names:
            with suppress(FileNotFoundError), self._telling():
                files.delete_file(f"{root}/{name}")

    def remove(self, name: str) -> None:
        """Deletes all objects below a name."""
        files, root = _open(self.url)
        with suppress(FileNotFoundError), self._telling():
            files.delete_dir(f"{root}/{name}")

    @contextmanager
    def marked(self) -> Iterator[str]:
        """An object here, by which other machines know that they reach the same store: its name."""
        name = f".seen_{uuid4().hex}"
        self.write(name, b"seen")
        try:
            yield name
        finally:
            self.delete(name)

    def claim(self) -> None:
        """Begins something new here; ValueError if there is something, or begins at this moment.

        Whoever begins leaves an object, and then looks for others': of several at most one finds
        none. A store makes nothing that is there or not there, as a folder is.
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
        """Raises ValueError unless objects can be made, listed and deleted here."""
        try:
            with self.marked() as mark:
                listed = mark in self.names()
        except OSError as error:
            raise ValueError(f"the storage must be writable; got {error}") from None
        if not listed:
            raise ValueError(f"the storage must list what it holds at once; {self} does not")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        files, root = _open(self.url)
        path = f"{root}/{name}"
        with self._telling():
            if files.type_name not in BUCKETS:  # an object store would keep an empty object
                files.create_dir(str(PurePosixPath(path).parent))
            with _replaced(files, path) as stream:
                yield stream

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turns the errors of whatever library is below into one line without credentials."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StoreError(f"{self}: {_reason(error)}") from None


Place = Path | Store
"""Where runs are kept: a folder, or a place in an object store."""


def place(text: str) -> Place:
    """What a user means by a path or an address; ValueError for an address of no use."""
    return Store.of(text) or local(Path(text))


def absolute(path: Path) -> Path:
    """A path that means the same in whatever folder a process works; a store's address stays.

    A relative one starts in the folder that this process works in.
    """
    text = str(path)
    if ADDRESS.match(text):
        return local(path) if text.startswith("file:/") else path
    return path.absolute()


@cache
def _open(url: str) -> tuple[Any, str]:
    """What speaks to a store, and the path in it.

    Raises ValueError if nothing does, StoreError if it does not answer.
    """
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        return FileSystem.from_uri(_impatient(url))
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
    """A stream whose content is at ``path`` when the block ends, unless it ends by an exception."""
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
    """Leaves an upload unfinished, as a process does that is killed.

    pyarrow cannot abort one from Python. Closing its stream would complete it, as would freeing
    it, also at the interpreter's end: it is never freed, at the cost of the part it holds (10 MB).
    """
    try:
        stream.flush()
    except Exception:  # a stream that has failed completes nothing
        with suppress(Exception):
            stream.close()
    else:
        pythonapi.Py_IncRef(py_object(stream))


@contextmanager
def _renamed(files: Any, path: str) -> Iterator[Any]:
    """Where an object is cut short as soon as its stream is opened: written aside and renamed."""
    final = PurePosixPath(path)
    aside = str(final.with_name(f".{final.name}.{uuid4().hex}.partial"))
    try:
        with files.open_output_stream(aside) as stream:
            yield stream
        if files.type_name in BUCKETS:  # without folders nothing can be renamed
            files.copy_file(aside, path)
            files.delete_file(aside)
        else:
            files.move(aside, path)
    except BaseException:
        with suppress(Exception):
            files.delete_file(aside)
        raise


def _impatient(url: str) -> str:
    """Google's library would try for a quarter of an hour."""
    parts = urlsplit(url)
    if parts.scheme not in ("gs", "gcs") or "retry_limit_seconds" in parts.query:
        return url
    limit = f"retry_limit_seconds={PATIENCE_S}"
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, limit]))))


def _forget_listings(files: Any) -> None:
    """fsspec remembers what it has listed, of which other machines know nothing."""
    if handler := getattr(files, "handler", None):
        handler.fs.invalidate_cache()


def _reason(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return redacted(line.strip())[:300]
