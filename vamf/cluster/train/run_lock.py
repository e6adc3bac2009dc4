"""A lock that keeps two processes from working on the same run or search."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vamf.errors import StillRunning
from vamf.file_lock import locked
from vamf.run_layout import LOCK
from vamf.store import StoragePath, Store
from vamf.training.checkpoints.remote_checkpoints import working_copy

LOOK_S = 0.5
"""Seconds between two tries to get a lock."""


@contextmanager
def exclusive(location: StoragePath, wait_s: float = 0.0) -> Iterator[None]:
    """Locks a run or a search, in a folder or a store, for the process of this block.

    The lock (flock) ends with its process. It works across machines if the folder's file system
    supports that, as NFS does, and Lustre mounted with ``-o flock``; some keep the locks of a lost
    machine for a minute or two. On file systems without locks it has no effect. For a run in an
    object store it only works between processes of this machine that share vamf's cache.

    Raises StillRunning if another process has the lock and keeps it for ``wait_s`` seconds.
    """
    file = _file(location)
    file.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    while True:
        with locked(file, wait=False) as mine:
            if mine:
                with suppress(OSError):  # on a full disk the file stays empty
                    file.write_text(json.dumps([os.getpid(), socket.gethostname()]))
                yield
                return
        if time.monotonic() >= deadline:
            raise StillRunning(
                f"{location} must have ended before it is resumed; "
                f"it is still running{_holder(file)}"
            )
        time.sleep(LOOK_S)


def require_not_running(location: StoragePath) -> None:
    """Raises ValueError if a process still works on a run or search, or it is not writable."""
    try:
        with exclusive(location):
            pass
    except OSError as error:
        raise ValueError(f"{location} must be writable; got {error}") from None


def _file(location: StoragePath) -> Path:
    if isinstance(location, Store):
        copy = working_copy(location, "driver")
        return copy.with_name(f"{copy.name}{LOCK}")
    return location / LOCK


def _holder(file: Path) -> str:
    """The process that wrote the file last; empty if the file cannot be read."""
    try:
        process, host = json.loads(file.read_text())
    except (OSError, ValueError, TypeError):
        return ""
    return f" (process {process} on host {host})"
