"""The exceptions that several modules use, and short forms of error messages."""


class StoreError(OSError):
    """An operation on an object store failed; the message is one line."""


class NotCreated(ValueError):
    """MLflow did not create or find a run: it does not answer, or it refused."""


class StillRunning(ValueError):
    """Another process is working on the run or search to resume; the message names it."""


class WorkersDiffer(ValueError):
    """The workers of one run do not train the same thing; raised on all of them."""


class NonFiniteLoss(FloatingPointError):
    """The loss of a step was infinite or not a number: the run cannot continue."""


class NonFiniteObjective(FloatingPointError):
    """An objective of a finished run was infinite or not a number: it cannot be compared."""


class RunFailed(RuntimeError):
    """A run ended before its last step; the message is one line."""


class StorageUnusable(RunFailed):
    """The storage was full or unavailable: the run itself is intact and can be resumed later."""


class NothingFound(RuntimeError):
    """No trial of a search succeeded."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; if there is none, its class name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def one_line(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters; if it is empty, the class name."""
    return " ".join(str(error).split())[:300] or type(error).__name__
