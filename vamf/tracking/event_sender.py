"""Sends a run's events to MLflow, which may be unreachable or refuse them."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Protocol

from requests import RequestException

from vamf.output import say
from vamf.redact import without_credentials
from vamf.tracking.error_reasons import failure, reason
from vamf.tracking.event_queue import Event, EventQueue, Queued

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
"""MLflow's error codes for which a retry is useless."""

MISSING = frozenset((None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR))
"""Codes of an OSError about the file itself (None: not an image), not about the storage."""


class Receiver(Protocol):
    """The receiver of events; every method may raise any exception."""

    def refresh(self) -> None:
        """Reads what was received before: called first, and after an outage."""

    def send(self, events: list[Event]) -> None:
        """Receives events of one kind, in order: all of them or none."""

    @property
    def address(self) -> str:
        """Its address, with or without credentials."""


class _Unreachable(Exception):
    """The receiver does not answer; the events are sent later."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class EventSender:
    """Sends events from a queue to their receiver, and never raises an error of the receiver.

    Events that the receiver does not acknowledge stay in the queue; those it refuses are recorded.
    """

    def __init__(self, spool: EventQueue, receiver: Receiver) -> None:
        self._spool = spool
        self._receiver = receiver
        self._stale = True
        self._unreachable = False
        self._next_attempt = 0.0
        self._printed: set[str] = set()
        self._one_thread = threading.Lock()
        self._posted: threading.Event | None = None

    def post(self, kind: str, **data: Any) -> None:
        """Queues an event and sends the queue, unless the receiver has just been unreachable.

        Within ``in_background`` a thread sends the queue. The file at ``data["path"]``, if there
        is one, may be deleted afterwards.
        """
        event = Event(kind=kind, data=data)
        if "path" in data and self._posted:  # copied before the thread can see the event
            self.guarded(lambda: self._spool.copy_file(event))
        try:
            self._spool.append(event)
        except OSError as error:
            with self._one_thread:
                self._unqueued(event, error)
        if self._posted:
            self._posted.set()
            return
        self._attempt_if_due()
        if "path" in data and not self._spool.empty():
            self.guarded(lambda: self._spool.copy_file(event))

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Within the block a thread sends the queue, and ``post`` does not wait for the receiver.

        The end of the block waits for an attempt that is under way, and starts no other.
        """
        self._posted, ended = threading.Event(), threading.Event()
        thread = threading.Thread(
            target=self._send_posted, args=(self._posted, ended), name="event-sender", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._posted.set()
            thread.join()
            self._posted = None

    def _send_posted(self, posted: threading.Event, ended: threading.Event) -> None:
        while posted.wait() and not ended.is_set():
            posted.clear()
            self._attempt_if_due()

    def _attempt_if_due(self) -> None:
        if time.monotonic() >= self._next_attempt:
            self.attempt()

    def attempt(self) -> bool:
        """Sends the queue; returns whether it is empty."""
        with self._one_thread:
            return self._attempt()

    def _attempt(self) -> bool:
        started = time.monotonic()
        try:
            with self._spool.sender() as (mine, changed):
                self._stale |= changed
                if mine:
                    self._drain()
            return self._spool.empty()
        except _Unreachable as outage:
            self._on_outage(outage.error, time.monotonic() - started)
        except OSError as error:
            self._unwritable(error)
            return not self._spool.folder.exists()  # a folder that is gone holds no events
        return False

    def guarded(self, action: Callable[[], None]) -> None:
        """Runs an action on the queue's folder; warns if the folder is full or gone."""
        try:
            action()
        except OSError as error:
            self._unwritable(error)

    def _unqueued(self, event: Event, error: OSError) -> None:
        """Sends an event directly, as the queue cannot be written, for instance on a full disk."""
        try:
            if time.monotonic() < self._next_attempt:
                raise error
            if self._stale:
                self._refresh()
            self._deliver([event])
        except _Unreachable as outage:
            self._on_outage(outage.error, 0.0)
            self._unwritable(error)
        except OSError:
            self._unwritable(error)

    def _drain(self) -> None:
        waiting = self._spool.peek()
        if waiting and self._stale:
            self._refresh()
        while waiting:
            for group in _groups(waiting):
                self._deliver([queued.event for queued in group])
                self._spool.acknowledge(group[-1].end)
                self._on_answer()
            waiting = self._spool.peek()

    def _refresh(self) -> None:
        try:
            self._receiver.refresh()
        except Exception as error:  # no exception of the receiver may end a training
            raise _Unreachable(error) from error
        self._stale = False

    def _deliver(self, events: list[Event]) -> None:
        """Sends events of one kind together; one by one if they are refused together."""
        try:
            self._receiver.send(events)
        except Exception as error:  # no exception of the receiver may end a training
            if not is_refusal(error):
                raise _Unreachable(error) from error
            if len(events) == 1:
                self._refused(events[0], reason(self._receiver.address, error))
                return
            for event in events:
                self._deliver([event])
            return
        for event in events:
            self._spool.delete_copy(event)

    def _refused(self, event: Event, why: str) -> None:
        self._spool.reject(event, why)
        what = event.data.get("key") or event.data.get("path") or event.data.get("values", "")
        name = what if isinstance(what, str) else ", ".join(what)
        self._warn_once(
            f"MLflow refused {event.kind} {name} ({why}); kept in {self._spool.rejected}"
        )

    def _on_outage(self, error: Exception, seconds: float) -> None:
        """Warns of an outage once; the next attempt is the later, the longer this one took."""
        self._next_attempt = time.monotonic() + max(RETRY_S, 10 * seconds)
        if not self._unreachable:
            _warn(
                f"{failure(self._receiver.address, error)}; training continues, metrics are kept "
                f"in {self._spool.folder} and sent when it is back"
            )
        self._unreachable = self._stale = True

    def _on_answer(self) -> None:
        if self._unreachable:
            address = without_credentials(self._receiver.address)
            _warn(f"MLflow at {address} is back; what was kept is being sent")
        self._unreachable = False
        self._next_attempt = 0.0

    def _unwritable(self, error: OSError) -> None:
        self._warn_once(f"{self._spool.folder} cannot be used, metrics may be lost ({error})")

    def _warn_once(self, line: str) -> None:
        """Prints a warning, each text once."""
        if line not in self._printed:
            _warn(line)
        self._printed.add(line)


def _groups(waiting: list[Queued]) -> Iterator[list[Queued]]:
    """Neighbouring metrics together, everything else alone."""

    def identity(queued: Queued) -> str:
        return "metrics" if queued.event.kind == "metrics" else queued.event.id

    for _, group in groupby(waiting, identity):
        yield list(group)


def _warn(line: str) -> None:
    say(line, error=True)


def is_refusal(error: Exception) -> bool:
    """Whether a retry is useless; False in doubt."""
    if isinstance(error, RequestException):
        status = error.response.status_code if error.response is not None else 0
        return 400 <= status < 500 and status not in (401, 403, 407, 408, 425, 429)
    if (code := getattr(error, "error_code", None)) is not None:
        return code in REFUSALS and "is locked" not in str(error)
    if isinstance(error, OSError):
        return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno in MISSING
    return isinstance(error, (ValueError, TypeError))
