"""The processes that work on one search, each as a driver of trials of its own."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from vamf import commands
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.train.run_lock import exclusive, require_not_running
from vamf.errors import StillRunning
from vamf.file_lock import locked
from vamf.run_layout import DRIVERS, LOCK, TURN

LOCK_WAIT_S = 2.0
"""Seconds for which a process that only looks whether a search is running may have its lock."""


@contextmanager
def turn(directory: Path) -> Iterator[None]:
    """Waits for this process's turn, in which no other driver of the search comes or goes.

    Neither does another start a trial or give one up. Turns do not nest.
    """
    with locked(directory / TURN, wait=True):
        yield


def at_work(directory: Path) -> set[str]:
    """The names of all drivers that work on a search now, in a turn; forgets those that died."""
    found = set()
    for file in (directory / DRIVERS).glob("*"):
        with locked(file, wait=False) as ended:
            if ended:
                file.unlink(missing_ok=True)
            else:
                found.add(file.name)
    return found


def described(drivers: set[str]) -> str:
    """The processes of some drivers, for a message."""
    parts = (name.rsplit("-", 2) for name in sorted(drivers))
    return ", ".join(f"process {process} on host {host}" for host, process, _ in parts)


class Driver:
    """This process as one of those that work on a search; ``working`` makes one."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._directory = sweep, sweep.directory
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        """Which the trials that it starts have in the study."""
        self.joined = False
        """Whether others worked on the search when this one came."""
        self._held = ExitStack()
        self._last: bool | None = None

    def others(self) -> set[str]:
        """The names of the other drivers, in a turn."""
        return at_work(self._directory) - {self.name}

    def come(self, join: bool) -> None:
        """Begins to work, in a turn; raises as ``working``."""
        before = at_work(self._directory)
        if before and not join:
            raise still_running(self._directory, before)
        require_reachable(self._sweep, before)
        if not before:
            with exclusive(self._directory, LOCK_WAIT_S):  # another command, or the search's end
                pass
        self.joined = bool(before)
        lock, own = self._directory / LOCK, self._directory / DRIVERS / self.name
        own.parent.mkdir(exist_ok=True)
        self._held.enter_context(locked(lock, wait=True, shared=True))
        self._held.enter_context(locked(own, wait=True))
        if join and self.name not in at_work(self._directory):
            raise ValueError(
                "several commands can work on one search only on a file system with locks; "
                f"{self._directory} has none"
            )

    def go(self) -> bool:
        """Stops working, in a turn; returns whether no other driver is left.

        This process then has the search for itself until the block of ``working`` ends.
        """
        if self._last is None:
            self._held.close()
            (self._directory / DRIVERS / self.name).unlink(missing_ok=True)
            self._last = not at_work(self._directory)
            if self._last:
                self._held.enter_context(exclusive(self._directory, LOCK_WAIT_S))
        return self._last

    def gone_as_last(self) -> bool:
        """``go`` in a turn of its own, if that has not been done; True if the storage is gone."""
        if self._last is None:
            with suppress(OSError), turn(self._directory):
                return self.go()
            self.release()
            self._last = True
        return self._last

    def release(self) -> None:
        """Gives up all locks."""
        self._held.close()


@contextmanager
def working(sweep: Sweep, *, join: bool) -> Iterator[Driver]:
    """Makes this process a driver of a search until the block ends.

    Raises StillRunning if another one works on it and ``join`` is not set, or if its results are
    being written; ValueError if ``join`` is set on a file system without locks, or if another
    machine works on a search whose study is a file.
    """
    driver = Driver(sweep)
    try:
        with turn(sweep.directory):
            driver.come(join)
        yield driver
        driver.gone_as_last()
    finally:
        driver.release()


def found_at_work(directory: Path, join: bool) -> set[str]:
    """The names of the drivers of a search.

    Raises ValueError if there are any and ``join`` is not set, if another command works on the
    search, or if its folder is not writable.
    """
    try:
        with turn(directory):
            found = at_work(directory)
    except OSError as error:
        raise ValueError(f"{directory} must be writable; got {error}") from None
    if found and not join:
        raise still_running(directory, found)
    if not found:
        require_not_running(directory)
    return found


def require_reachable(sweep: Sweep, drivers: set[str]) -> None:
    """Raises ValueError if a driver is on another machine, and the search's study is a file."""
    hosts = {name.rsplit("-", 2)[0] for name in drivers} - {socket.gethostname()}
    if hosts and not sweep.study:
        raise ValueError(
            "commands on several machines can work on one search only if its study is in a "
            f"database (--study); that of {sweep.directory} is a file, in use on host {min(hosts)}"
        )


def still_running(directory: Path, drivers: set[str]) -> StillRunning:
    """The error that names the drivers of a search, and how to help them."""
    join = commands.shown("tune", "--resume", directory, "--join")
    return StillRunning(
        f"{directory} must have ended before it is resumed; it is still running "
        f"({described(drivers)}); {join} works on it at the same time"
    )
