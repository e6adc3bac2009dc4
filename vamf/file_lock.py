"""Locks of files that processes wait for, or find taken."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool, shared: bool = False) -> Iterator[bool]:
    """Locks a file until the block or the process ends; yields whether that succeeded.

    With ``wait`` it waits for another process that has the lock. Several may have a ``shared``
    lock. Creates the file; raises OSError if it cannot. On a file system without locks it has no
    effect.
    """
    with path.open("a+b") as handle:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks: what is locked then needs a single writer
        yield True
