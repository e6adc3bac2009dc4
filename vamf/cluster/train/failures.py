"""Tells errors that end a run from those that a restart may fix, and puts both in one line."""

import errno
from collections.abc import Mapping
from pathlib import Path

from vamf.errors import NonFiniteLoss, RunFailed, StorageUnusable, StoreError, first_line
from vamf.files import write_whole
from vamf.redact import redacted
from vamf.run_layout import ERROR_DETAILS

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
"""Codes of an OSError about full or read-only storage, which a restart does not fix."""

FINAL = (
    *(ValueError, TypeError, ArithmeticError, LookupError),
    *(AttributeError, AssertionError, ImportError),
)
"""Errors of settings, data and code, which would be raised again after a restart.

A RuntimeError is not among them: the workers beside a lost one raise it, too.
"""


def is_final(error: BaseException) -> bool:
    """Whether the same error would be raised again after a restart."""
    return isinstance(error, FINAL) or is_full(error)


def is_full(error: BaseException) -> bool:
    """Whether an error is about full or read-only storage."""
    return isinstance(error, OSError) and error.errno in FULL


def storage_full(error: OSError, directory: Path | None = None) -> StorageUnusable:
    """The error that ends the run in a folder whose storage is full."""
    path = error.filename or (f"in {directory}" if directory else "a file")
    return StorageUnusable(
        f"cannot write {path}: {error.strerror}; "
        "checkpoints before it are whole: make room, then resume"
    )


def as_driver_error(error: BaseException, directory: Path) -> BaseException:
    """What the driver raises for a final error of a worker; the traceback goes to a file."""
    if isinstance(error, OSError) and is_full(error):
        return storage_full(error, directory)
    for kind in (NonFiniteLoss, ValueError):  # whose messages are for users
        if isinstance(error, kind):
            return kind(str(error))
    return RunFailed(f"{_brief(error)}; traceback in {_write_details(_details(error), directory)}")


def too_many_failures(
    failures: Mapping[int, BaseException], allowed: int, directory: Path
) -> RunFailed:
    """The error if workers failed more often than allowed; ``failures`` are the last, by rank."""
    rank, last = next(iter(sorted(failures.items())), (0, RuntimeError("unknown")))
    kind = StorageUnusable if isinstance(last, StoreError) else RunFailed
    path = _write_details("\n".join(map(_details, failures.values())), directory)
    return kind(
        f"workers failed more than {allowed} times, the last time rank {rank} with "
        f"{_brief(last)}; more in {path}"
    )


def _details(error: BaseException) -> str:
    """The traceback that the worker added as a note, as Ray does not send tracebacks."""
    return "\n".join(getattr(error, "__notes__", [])) or str(error)


def _brief(error: BaseException) -> str:
    name, line = type(error).__name__, redacted(first_line(error))[:300]
    return name if line == name else f"{name}: {line}"


def _write_details(text: str, directory: Path) -> Path:
    path = directory / ERROR_DETAILS
    write_whole(path, redacted(text) + "\n")
    return path
