"""Reports why a trial waits for MLflow before it starts, by a file that the search reads."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vamf.files import write_whole
from vamf.run_layout import TRIALS, WAITING, trial_number
from vamf.tracking.run_creation import Wait

LOOK_S = 5.0
"""Seconds between two checks for waiting runs."""


@contextmanager
def reason_in_file(directory: Path) -> Iterator[Wait]:
    """Yields a function that writes why a run waits; the file is deleted at the block's end."""

    def write(why: str) -> None:
        with suppress(OSError):
            write_whole(directory / WAITING, why)

    try:
        yield write
    finally:
        (directory / WAITING).unlink(missing_ok=True)


@dataclass
class WaitingTrials:
    """Finds the trials of a search that wait to start, each once."""

    sweep: Path
    """The search's folder."""
    _checked: float = 0.0
    _reported: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        for left in self.sweep.glob(f"{TRIALS}/*/{WAITING}"):  # by processes that died
            left.unlink(missing_ok=True)

    def look(self) -> list[str]:
        """The lines to print now."""
        now = time.monotonic()
        if now < self._checked + LOOK_S:
            return []
        self._checked, lines = now, []
        for file in sorted({*self.sweep.glob(f"{TRIALS}/*/{WAITING}")} - self._reported):
            with suppress(OSError):  # the trial has just started
                why = file.read_text()
                lines.append(f"trial {trial_number(file.parts[-3])} waits to begin: {why}")
                self._reported.add(file)
        return lines
