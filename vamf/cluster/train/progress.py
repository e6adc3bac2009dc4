"""Shows a run's progress and notes: a bar on a terminal, a line a minute in a log."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from vamf.output import say
from vamf.run_layout import NOTES, PROGRESS

COMPILING = "compiling kernels before the first step: about 15 s, once on a machine"
"""The note of a run whose first step compiles."""

LINE_S = 60.0
"""Seconds between two lines in a log."""


class _Lines:
    """A log file that tqdm writes to as to a terminal: each update becomes a line."""

    def __init__(self, log: TextIO | None) -> None:
        self._log = log

    def write(self, text: str) -> None:
        if (line := text.strip("\r\n ")) and self._log:
            with suppress(OSError, ValueError):  # nobody reads the log any more
                self._log.write(f"{line}\n")

    def flush(self) -> None:
        if self._log:
            with suppress(OSError, ValueError):
                self._log.flush()


def step_bar(total: int | None, initial: int = 0, *, scale: bool = False) -> tqdm:
    """A progress bar of steps on stderr; a line a minute if stderr is not a terminal."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        unit="step",
        unit_scale=scale,
        smoothing=0 if scale else 0.3,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else LINE_S,
        file=sys.stderr if terminal else _Lines(sys.stderr),
    )


class SampleRate:
    """Samples a second since the first step that was seen: start and compilation do not count."""

    def __init__(self, batch: int, step: int = 0) -> None:
        self._batch, self._before = batch, step
        self._first: tuple[int, float] | None = None

    def __call__(self, step: int, now: float) -> str:
        """The rate at a step and a time in seconds, or nothing as long as it is not known."""
        if step == self._before:
            return ""
        first, then = self._first = self._first or (step, now)
        if step <= first or now <= then:
            return ""
        rate = (step - first) * self._batch / (now - then)
        return f"{rate:,.0f} samples/s" if rate >= 10 else f"{rate:.1f} samples/s"


@contextmanager
def progress_bar(directory: Path, steps: int, batch: int) -> Iterator[None]:
    """Shows, until the block ends, the progress and the notes of the run in a folder."""
    done, printed = threading.Event(), len(notes(directory))
    rate = SampleRate(batch, progress(directory))

    def update() -> None:
        nonlocal printed
        step, also = progress(directory), remarks(directory)
        parts = [part for part in (rate(step, time.monotonic()), also) if part]
        shown.set_postfix_str(", ".join(parts), refresh=False)
        shown.update(step - shown.n)
        for line in notes(directory)[printed:]:
            say(line, error=True)
            printed += 1

    def follow() -> None:
        while not done.wait(0.5):
            update()
        update()

    with step_bar(steps, progress(directory)) as shown:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def described(progress: Mapping[str, Any]) -> str:
    """What is kept of a report: the step, and what the bar shows beside it."""
    remarks = []
    if (peak := progress.get("memory/peak_gib")) is not None:
        remarks.append(f"{peak:.1f} GiB")
    if (waiting := progress.get("time/waiting")) is not None:
        remarks.append(f"{waiting:.0%} waiting for data")
    return " ".join([str(progress["step"]), ", ".join(remarks)]).rstrip()


def progress(directory: Path) -> int:
    """The step that the run in ``directory`` last reported."""
    return int(_last_report(directory)[0] or 0)


def remarks(directory: Path) -> str:
    """What the run in ``directory`` last reported of its memory and its data, or nothing."""
    return _last_report(directory)[2]


def _last_report(directory: Path) -> tuple[str, str, str]:
    try:
        return (directory / PROGRESS).read_text().partition(" ")
    except OSError:  # not written yet, or the file system is gone
        return "", "", ""


def notes(directory: Path) -> list[str]:
    """The complete lines of the notes of the run in ``directory``."""
    try:
        text = (directory / NOTES).read_text(encoding="utf-8")
    except OSError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def add_note(directory: Path, line: str) -> None:
    """Adds a line to a run's notes."""
    with (directory / NOTES).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
