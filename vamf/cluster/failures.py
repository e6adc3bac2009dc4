"""What ends a run for good, what trying again may mend, and how either is told in one line."""

import errno
from collections.abc import Mapping
from pathlib import Path

from vamf.files import write_whole
from vamf.redact import redacted
from vamf.training.trainer import NonFiniteLoss

DETAILS = "error.txt"
"""The file in a run's folder that holds the traceback of the workers that ended it."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
"""Codes of an OSError that a restart does not mend: storage that takes no more."""

FINAL = (
    *(ValueError, TypeError, ArithmeticError, LookupError),
    *(AttributeError, AssertionError, ImportError),
)
"""Errors of settings, data and code: from the same checkpoint they would come again.

A RuntimeError is none of them: it is also how the colleagues of a lost worker hear of its end.
"""


class RunFailed(RuntimeError):
    """A run ended before its last step; says why, in one line."""


class StorageUnusable(RunFailed):
    """Storage took no more, or was gone: no fault of the run's, which can go on later."""


class NonFiniteObjective(FloatingPointError):
    """An objective of a whole run was infinite or not a number: it compares with no other."""


def is_final(error: BaseException) -> bool:
    """Whether a restart would end the same."""
    return isinstance(error, FINAL) or is_full(error)


def is_full(error: BaseException) -> bool:
    """Whether storage took no more."""
    return isinstance(error, OSError) and error.errno in FULL


def full(error: OSError, directory: Path | None = None) -> StorageUnusable:
    """Storage that took no more, as the end of the run in a folder."""
    place = error.filename or (f"in {directory}" if directory else "a file")
    return StorageUnusable(
        f"cannot write {place}: {error.strerror}; "
        "checkpoints before it are whole: make room, then resume"
    )


def explained(error: BaseException, directory: Path) -> BaseException:
    """A final error as what the driver raises; its traceback goes to a file."""
    if isinstance(error, OSError) and is_full(error):
        return full(error, directory)
    for kind in (NonFiniteLoss, ValueError):  # said in words for users
        if isinstance(error, kind):
            return kind(str(error))
    return RunFailed(f"{_brief(error)}; traceback in {_keep(_details(error), directory)}")


def lost(failures: Mapping[int, BaseException], allowed: int, directory: Path) -> RunFailed:
    """Workers that failed more often than is allowed; ``failures`` are the last ones, by rank."""
    rank, last = next(iter(sorted(failures.items())), (0, RuntimeError("unknown")))
    place = _keep("\n".join(map(_details, failures.values())), directory)
    return RunFailed(
        f"workers failed more than {allowed} times, the last time rank {rank} with "
        f"{_brief(last)}; more in {place}"
    )


def _details(error: BaseException) -> str:
    """The traceback that the worker noted, as tracebacks do not travel between processes."""
    return "\n".join(getattr(error, "__notes__", [])) or str(error)


def _brief(error: BaseException) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {redacted(line.strip())[:300]}"


def _keep(text: str, directory: Path) -> Path:
    path = directory / DETAILS
    write_whole(path, redacted(text) + "\n")
    return path
