"""A run, or a search, is in the hands of one process at a time."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vamf.store import Place, Store
from vamf.tracking.spool import locked
from vamf.training.fetching import working_copy

LOCK = ".lock"
"""The file in a run's, or a search's, folder that its process holds."""

LOOK_S = 0.5
"""Seconds between two tries to get a lock."""


class StillRunning(ValueError):
    """Another process has what this one would go on with; says which, in one line."""


@contextmanager
def held(place: Place, patience: float = 0.0) -> Iterator[None]:
    """While it lasts no other process goes on with what is kept in a folder or a store.

    The lock is one of the operating system (flock), and ends with its process, however that ends.
    It holds on all machines that mount the folder if its file system passes locks on, as NFS does,
    and Lustre mounted with ``-o flock``; some keep a lost machine's locks for a minute or two. On
    file systems without locks nobody is kept out, and of a run in an object store only processes
    of this machine that share its cache are.

    Raises StillRunning if another process has it and keeps it for ``patience`` seconds.
    """
    file = _file(place)
    file.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + patience
    while True:
        with locked(file, wait=False) as mine:
            if mine:
                with suppress(OSError):  # on a full disk the file is empty: it names nobody
                    file.write_text(json.dumps([os.getpid(), socket.gethostname()]))
                yield
                return
        if time.monotonic() >= give_up:
            raise StillRunning(
                f"{place} must have ended before it is resumed; it is still running{_holder(file)}"
            )
        time.sleep(LOOK_S)


def require_ended(place: Place) -> None:
    """Raises ValueError if a process still works on what is kept there, or it cannot be written."""
    try:
        with held(place):
            pass
    except OSError as error:
        raise ValueError(f"{place} must be writable; got {error}") from None


def _file(place: Place) -> Path:
    if isinstance(place, Store):
        copy = working_copy(place, "driver")
        return copy.with_name(f"{copy.name}{LOCK}")
    return place / LOCK


def _holder(file: Path) -> str:
    """Who wrote the file last, as far as it can be read."""
    try:
        process, host = json.loads(file.read_text())
    except (OSError, ValueError, TypeError):
        return ""
    return f" (process {process} on host {host})"
