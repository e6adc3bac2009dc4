"""Ends the program cleanly on signals: preemption, `scancel`, a closed terminal."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""The signals that are handled; SLURM sends USR1 in advance with `--signal=USR1@60`."""

PATIENCE_S = 1.5
"""Seconds that a training step may take to end: Ray kills a stopped job after three."""


LOOK_S = 0.2
"""Seconds between two checks whether a preparation is done."""


class Terminated(KeyboardInterrupt):
    """A signal asked the program to end; it ends as by Ctrl-C, but with another exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number
        """The exit status that a shell shows for a program ended by the signal."""


class _Preparation(NamedTuple):
    ask: Callable[[], None]
    done: Callable[[], bool]
    seconds: float


_handling = False
_preparation: _Preparation | None = None
_deadline = 0.0
_pending: Terminated | None = None
_last: Terminated | None = None


def handle_signals(again: bool = False) -> None:
    """Installs handlers that raise Terminated in the main thread, ``PATIENCE_S`` after a signal.

    Before that, a training loop that calls ``pending`` can end between two steps. Signals that are
    ignored, such as SIGHUP under nohup, stay ignored. ``again`` reinstalls the handlers, which Ray
    replaces, if they were installed before.
    """
    global _handling
    if threading.current_thread() is not threading.main_thread() or (again and not _handling):
        return
    _handling = True
    for number in HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    signal.signal(signal.SIGALRM, _raise)


@contextmanager
def prepared(ask: Callable[[], None], done: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Within the block, a signal calls ``ask``; the program ends when ``done`` returns True.

    It ends after ``seconds`` at the latest. Neither function may raise.
    """
    global _preparation
    _preparation = _Preparation(ask, done, seconds)
    try:
        yield
    finally:
        _preparation = None


def pending() -> Terminated | None:
    """The signal that asked the program to end, if any. Returned once: the caller must raise it."""
    global _pending
    found, _pending = _pending, None
    if found is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found


def cause(error: BaseException) -> Terminated | None:
    """The signal behind an interruption, if any; Ray raises KeyboardInterrupt for a signal."""
    if isinstance(error, Terminated):
        return error
    return _last if isinstance(error, KeyboardInterrupt) else None


def _note(number: int, _: FrameType | None) -> None:
    global _pending, _last, _deadline
    if _pending is not None:  # a second signal
        raise pending() or Terminated(number)
    _pending = _last = Terminated(number)
    if _preparation is not None:
        _deadline = time.monotonic() + _preparation.seconds
        _preparation.ask()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)


def _raise(number: int, _: FrameType | None) -> None:
    waits = _preparation is not None and not _preparation.done()
    if waits and time.monotonic() < _deadline:
        signal.setitimer(signal.ITIMER_REAL, LOOK_S)
        return
    raise pending() or Terminated(number)
