"""Ends a search whose storage is full or gone; its trials are not failed by that."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError

from vamf.cluster.train.failures import is_full, storage_full
from vamf.errors import StorageUnusable, StoreError, one_line
from vamf.redact import redacted
from vamf.run_layout import SWEEP, WRITE_TEST

UNUSABLE = "storage_unusable"
"""The key under which a trial reports to the search why it could not write."""

DATABASE = re.compile(
    r"database or disk is full|attempt to write a readonly database|disk I/O error"
    r"|unable to open database file"
)
"""SQLite's messages about full or missing storage."""


def unusable(error: BaseException | None) -> StorageUnusable | None:
    """The storage failure that an error or its causes are about; None for other errors."""
    while error is not None:
        if isinstance(error, StorageUnusable):
            return error
        if isinstance(error, OSError) and is_full(error):
            return storage_full(error)
        if isinstance(error, StoreError):
            return StorageUnusable(f"the storage must answer: {error}")
        if found := DATABASE.search(str(error)):
            return StorageUnusable(f"the search's study cannot be written: {found[0]}")
        if isinstance(error, StorageInternalError):
            why = redacted(one_line(error.__cause__ or error))
            return StorageUnusable(f"the search's study cannot be used: {why}")
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def as_storage_unusable() -> Iterator[None]:
    """Turns storage errors of all libraries into StorageUnusable."""
    try:
        yield
    except Exception as error:
        if (failure := unusable(error)) is not None:
            raise failure from None
        raise


@contextmanager
def reported_to_the_search(report: Callable[[Mapping[str, str]], None]) -> Iterator[None]:
    """In a trial's process: reports a storage failure to the search, which then ends.

    The failure is not raised, as Ray would print it.
    """
    try:
        yield
    except Exception as error:
        if (failure := unusable(error)) is None:
            raise
        report({UNUSABLE: str(failure)})


class StorageMonitor:
    """Notices storage failures of a search, in reports of trials and in the driver's writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._failure: StorageUnusable | None = None

    def read_report(self, result: Mapping[str, Any]) -> None:
        """Reads the report of a trial."""
        if UNUSABLE in result:
            self._failure = StorageUnusable(result[UNUSABLE])

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Catches storage errors in callbacks, where Ray Tune would take them for a trial's."""
        try:
            yield
        except Exception as error:
            self._failure = unusable(error)
            if self._failure is None:
                raise

    def writable(self) -> bool:
        """Whether a file can be written; checked when a trial's process has died."""
        try:
            self._require_folder()
            probe = self._directory / WRITE_TEST
            probe.write_bytes(bytes(4096))
            probe.unlink(missing_ok=True)  # another driver may have probed, too
        except OSError as error:
            self._failure = unusable(error) or self._gone(error)
        return self._failure is None

    def require(self) -> None:
        """Raises StorageUnusable after a storage failure."""
        if self._failure is None:
            try:
                self._require_folder()
            except OSError as error:
                self._failure = self._gone(error)
        if self._failure is not None:
            raise self._failure

    def _require_folder(self) -> None:
        """Raises OSError if the search's file is gone; Ray may have created its folder again."""
        (self._directory / SWEEP).stat()

    def _gone(self, error: OSError) -> StorageUnusable:
        return StorageUnusable(f"the search's folder, {self._directory}, is gone: {error.strerror}")
