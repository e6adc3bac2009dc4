"""Storage that takes no more, or is gone: the end of a search, and no trial's result."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vamf.cluster.failures import StorageUnusable, full, is_full
from vamf.cluster.sweep import SWEEP

UNUSABLE = "storage_unusable"
"""The figure by which a trial's process tells the search that it could not write, and why."""

DATABASE = re.compile(
    r"database or disk is full|attempt to write a readonly database|disk I/O error"
    r"|unable to open database file"
)
"""What SQLite says of such storage."""


def unusable(error: BaseException | None) -> StorageUnusable | None:
    """What an error, or what it came from, says of storage; None if it is about something else."""
    while error is not None:
        if isinstance(error, StorageUnusable):
            return error
        if isinstance(error, OSError) and is_full(error):
            return full(error)
        if found := DATABASE.search(str(error)):
            return StorageUnusable(f"the search's study cannot be written: {found[0]}")
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def one_line() -> Iterator[None]:
    """Turns what is raised because of storage, by whatever library, into StorageUnusable."""
    try:
        yield
    except Exception as error:
        if (told := unusable(error)) is not None:
            raise told from None
        raise


@contextmanager
def told_to_the_search(report: Callable[[Mapping[str, str]], None]) -> Iterator[None]:
    """In a trial's process: the search hears of storage that could not be written, and ends.

    Nothing is raised for it, as Ray would print it.
    """
    try:
        yield
    except Exception as error:
        if (told := unusable(error)) is None:
            raise
        report({UNUSABLE: str(told)})


class Storage:
    """The storage of a search, as its driver learns of it: from trials, and by its own writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended: StorageUnusable | None = None

    def hear(self, result: Mapping[str, Any]) -> None:
        """Takes what a trial reports."""
        if UNUSABLE in result:
            self._ended = StorageUnusable(result[UNUSABLE])

    @contextmanager
    def minded(self) -> Iterator[None]:
        """For what Ray Tune calls: it takes an exception for a trial's failure, and repeats it."""
        try:
            yield
        except Exception as error:
            self._ended = unusable(error)
            if self._ended is None:
                raise

    def usable(self) -> bool:
        """Whether a file can still be written; it is asked when a trial's process has died."""
        try:
            self._seen()
            probe = self._directory / ".usable"
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            self._ended = unusable(error) or self._gone(error)
        return self._ended is None

    def require(self) -> None:
        """Raises StorageUnusable, once there is a reason."""
        if self._ended is None:
            try:
                self._seen()
            except OSError as error:
                self._ended = self._gone(error)
        if self._ended is not None:
            raise self._ended

    def _seen(self) -> None:
        """Raises OSError where the search's own file is gone: Ray makes its folder anew."""
        (self._directory / SWEEP).stat()

    def _gone(self, error: OSError) -> StorageUnusable:
        return StorageUnusable(f"the search's folder, {self._directory}, is gone: {error.strerror}")
