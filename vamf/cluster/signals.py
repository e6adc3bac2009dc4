"""Signals that ask the program to end: preemption, `scancel`, a terminal that is closed."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

ASKING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Those that are heeded; SLURM sends USR1 ahead of time by `--signal=USR1@60`."""

PATIENCE_S = 1.5
"""Seconds that a step may take to its end: Ray kills a stopped job's process after three."""


LOOK_S = 0.2
"""Seconds between two looks whether what was prepared is done."""


class Terminated(KeyboardInterrupt):
    """A signal asked the program to end; it ends as by Ctrl-C, with a status of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number
        """What a shell shows of a program that the signal ended."""


class _Preparation(NamedTuple):
    ask: Callable[[], None]
    done: Callable[[], bool]
    seconds: float


_heeding = False
_preparation: _Preparation | None = None
_give_up = 0.0
_pending: Terminated | None = None
_last: Terminated | None = None


def heed(again: bool = False) -> None:
    """From now on the signals raise Terminated in the main thread, ``PATIENCE_S`` after they came.

    Until then a training loop that asks ``pending`` may end between two steps. What is ignored, as
    SIGHUP is under nohup, stays ignored. ``again`` takes the signals back from who has taken them
    since, as Ray does, if they were heeded before.
    """
    global _heeding
    if threading.current_thread() is not threading.main_thread() or (again and not _heeding):
        return
    _heeding = True
    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    signal.signal(signal.SIGALRM, _raise)


@contextmanager
def prepared(ask: Callable[[], None], done: Callable[[], bool], seconds: float) -> Iterator[None]:
    """While it lasts, a signal calls ``ask``, and ends the program once ``done`` says so.

    At the latest after ``seconds``. None of the two may raise.
    """
    global _preparation
    _preparation = _Preparation(ask, done, seconds)
    try:
        yield
    finally:
        _preparation = None


def pending() -> Terminated | None:
    """What the program is asked to end by, if it is, once: the caller has to raise it."""
    global _pending
    found, _pending = _pending, None
    if found is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found


def cause(error: BaseException) -> Terminated | None:
    """The signal that an interruption came from, if any: Ray raises a KeyboardInterrupt for it."""
    if isinstance(error, Terminated):
        return error
    return _last if isinstance(error, KeyboardInterrupt) else None


def _note(number: int, _: FrameType | None) -> None:
    global _pending, _last, _give_up
    if _pending is not None:  # asked twice
        raise pending() or Terminated(number)
    _pending = _last = Terminated(number)
    if _preparation is not None:
        _give_up = time.monotonic() + _preparation.seconds
        _preparation.ask()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)


def _raise(number: int, _: FrameType | None) -> None:
    waits = _preparation is not None and not _preparation.done()
    if waits and time.monotonic() < _give_up:
        signal.setitimer(signal.ITIMER_REAL, LOOK_S)
        return
    raise pending() or Terminated(number)
