"""Delivery of a run's events to MLflow, which may be away, or refuse them, at any time."""

import errno
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, Protocol

from requests import RequestException

from vamf.output import say
from vamf.tracking.reasons import failure, reason, where
from vamf.tracking.spool import Event, Queued, Spool

RETRY_S = 10.0
"""Seconds between attempts to reach a server that does not answer."""

REFUSALS = frozenset(
    (
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "INVALID_STATE",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "MALFORMED_REQUEST",
        "NOT_IMPLEMENTED",
    )
)
"""MLflow's error codes that no later attempt will mend."""

MISSING = frozenset((None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR))
"""Codes of an OSError about the file itself (None: not an image), not the storage it goes to."""


class Receiver(Protocol):
    """Who the events are for; every method may raise anything."""

    def refresh(self) -> None:
        """Reads what was received before: called first, and after it was away."""

    def send(self, events: list[Event]) -> None:
        """Receives events of one kind, in order: all of them or none."""

    @property
    def address(self) -> str:
        """Where it is; with credentials or without."""


class _Away(Exception):
    """The receiver does not answer: not an error, only a reason to come back later."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Courier:
    """Carries events from a queue to their receiver, and never raises for the receiver's sake.

    What the receiver does not acknowledge stays in the queue; what it refuses is put aside.
    """

    def __init__(self, spool: Spool, receiver: Receiver) -> None:
        self._spool = spool
        self._receiver = receiver
        self._stale = True
        self._away = False
        self._next_attempt = 0.0
        self._said: set[str] = set()

    def post(self, kind: str, **data: Any) -> None:
        """Queues an event and, unless the receiver was away moments ago, sends what waits.

        The file at ``data["path"]``, if there is one, may vanish afterwards.
        """
        event = Event(kind=kind, data=data)
        try:
            self._spool.append(event)
        except OSError as error:
            self._unqueued(event, error)
        if time.monotonic() >= self._next_attempt:
            self.attempt()
        if "path" in data:
            self.guarded(lambda: self._keep(event))

    def attempt(self) -> bool:
        """Sends what waits; whether nothing is left."""
        started = time.monotonic()
        try:
            with self._spool.sender() as (mine, changed):
                self._stale |= changed
                if mine:
                    self._drain()
            return self._spool.empty()
        except _Away as away:
            self._lost(away.error, time.monotonic() - started)
        except OSError as error:
            self._unwritable(error)
            return not self._spool.folder.exists()  # nothing waits in a folder that is gone
        return False

    def guarded(self, action: Callable[[], None]) -> None:
        """Does something to the queue's folder, which may be full or gone."""
        try:
            action()
        except OSError as error:
            self._unwritable(error)

    def _unqueued(self, event: Event, error: OSError) -> None:
        """Sends an event past a queue that cannot be written, for instance on a full disk."""
        try:
            if time.monotonic() < self._next_attempt:
                raise error
            if self._stale:
                self._refresh()
            self._deliver([event])
        except _Away as away:
            self._lost(away.error, 0.0)
            self._unwritable(error)
        except OSError:
            self._unwritable(error)

    def _keep(self, event: Event) -> None:
        if not self._spool.empty():
            self._spool.keep(event)

    def _drain(self) -> None:
        waiting = self._spool.peek()
        if waiting and self._stale:
            self._refresh()
        while waiting:
            for group in _groups(waiting):
                self._deliver([queued.event for queued in group])
                self._spool.acknowledge(group[-1].end)
                self._found()
            waiting = self._spool.peek()

    def _refresh(self) -> None:
        try:
            self._receiver.refresh()
        except Exception as error:  # whatever the receiver raises must not end a training of days
            raise _Away(error) from error
        self._stale = False

    def _deliver(self, events: list[Event]) -> None:
        """Sends events of one kind together, and one by one where together they are refused."""
        try:
            self._receiver.send(events)
        except Exception as error:  # whatever the receiver raises must not end a training of days
            if not is_refusal(error):
                raise _Away(error) from error
            if len(events) == 1:
                self._refused(events[0], reason(self._receiver.address, error))
                return
            for event in events:
                self._deliver([event])
            return
        for event in events:
            self._spool.drop(event)

    def _refused(self, event: Event, why: str) -> None:
        self._spool.reject(event, why)
        what = event.data.get("key") or event.data.get("path") or event.data.get("values", "")
        name = what if isinstance(what, str) else ", ".join(what)
        self._say(f"MLflow refused {event.kind} {name} ({why}); kept in {self._spool.rejected}")

    def _lost(self, error: Exception, seconds: float) -> None:
        """Notes that the receiver is away; finding out may have taken long, so it stays rare."""
        self._next_attempt = time.monotonic() + max(RETRY_S, 10 * seconds)
        if not self._away:
            _warn(
                f"{failure(self._receiver.address, error)}; training goes on, metrics are kept in "
                f"{self._spool.folder} and sent when it is back"
            )
        self._away = self._stale = True

    def _found(self) -> None:
        if self._away:
            _warn(f"MLflow at {where(self._receiver.address)} is back; what was kept is being sent")
        self._away = False
        self._next_attempt = 0.0

    def _unwritable(self, error: OSError) -> None:
        self._say(f"{self._spool.folder} cannot be used, metrics may be lost ({error})")

    def _say(self, line: str) -> None:
        """Warns once."""
        if line not in self._said:
            _warn(line)
        self._said.add(line)


def _groups(waiting: list[Queued]) -> Iterator[list[Queued]]:
    """Neighbouring metrics together, everything else alone."""

    def identity(queued: Queued) -> str:
        return "metrics" if queued.event.kind == "metrics" else queued.event.id

    for _, group in groupby(waiting, identity):
        yield list(group)


def _warn(line: str) -> None:
    say(line, error=True)


def is_refusal(error: Exception) -> bool:
    """Whether no later attempt will mend this; when in doubt, one will."""
    if isinstance(error, RequestException):
        status = error.response.status_code if error.response is not None else 0
        return 400 <= status < 500 and status not in (401, 403, 407, 408, 425, 429)
    if (code := getattr(error, "error_code", None)) is not None:
        return code in REFUSALS and "is locked" not in str(error)
    if isinstance(error, OSError):
        return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno in MISSING
    return isinstance(error, (ValueError, TypeError))
