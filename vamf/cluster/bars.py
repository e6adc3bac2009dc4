"""How far a run is: a bar on a terminal, a line now and then in a log, and its notes."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from vamf.output import say

PROGRESS, NOTES = "progress", "notes"
"""The files in a run's folder that hold the last reported step, and a line for each note."""

LINE_S = 60.0
"""Seconds between two lines in a log."""


class _Lines:
    """A log, as the terminal that tqdm draws on: each drawing becomes a line."""

    def __init__(self, log: TextIO | None) -> None:
        self._log = log

    def write(self, text: str) -> None:
        if (line := text.strip("\r\n ")) and self._log:
            with suppress(OSError, ValueError):  # nobody reads it any more
                self._log.write(f"{line}\n")

    def flush(self) -> None:
        if self._log:
            with suppress(OSError, ValueError):
                self._log.flush()


def step_bar(total: int, initial: int = 0, *, scale: bool = False) -> tqdm:
    """A bar of steps on stderr; where that is no terminal, a line a minute."""
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


@contextmanager
def progress_bar(directory: Path, steps: int) -> Iterator[None]:
    """Shows, until the block ends, how far the run in a folder is, and what it notes."""
    done, told = threading.Event(), len(notes(directory))

    def look() -> None:
        nonlocal told
        shown.update(progress(directory) - shown.n)
        for line in notes(directory)[told:]:
            say(line, error=True)
            told += 1

    def follow() -> None:
        while not done.wait(0.5):
            look()
        look()

    with step_bar(steps, progress(directory)) as shown:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def progress(directory: Path) -> int:
    """The step that the run in ``directory`` last reported."""
    try:
        return int((directory / PROGRESS).read_text() or 0)
    except OSError:  # not there yet, or a file system that is gone
        return 0


def notes(directory: Path) -> list[str]:
    """What the run in ``directory`` has noted, a whole line each."""
    try:
        text = (directory / NOTES).read_text(encoding="utf-8")
    except OSError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def add_note(directory: Path, line: str) -> None:
    """Notes something, for whoever follows the run."""
    with (directory / NOTES).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
