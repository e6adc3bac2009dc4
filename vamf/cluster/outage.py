"""What a search does while MLflow is away: no trial fails by it, and what waits is sent later."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vamf import tracking
from vamf.cluster.holding import held
from vamf.cluster.mirror import Mirror
from vamf.cluster.sweep import Sweep
from vamf.cluster.trials import TRIAL
from vamf.files import write_whole
from vamf.store import Place, Store, StoreError
from vamf.tracking import Run
from vamf.tracking.making import Wait
from vamf.tracking.resending import Resent, sent, waits
from vamf.training.fetching import working_copy

WAITING = "waiting"
"""The file in a run's folder that says why it has not begun yet."""

LOOK_S = 5.0
"""Seconds between two looks for runs that wait."""


@contextmanager
def telling(directory: Path) -> Iterator[Wait]:
    """Takes why a run waits to begin, for the process that prints it, until the block ends."""

    def tell(why: str) -> None:
        with suppress(OSError):
            write_whole(directory / WAITING, why)

    try:
        yield tell
    finally:
        (directory / WAITING).unlink(missing_ok=True)


@dataclass
class Waiting:
    """Says of each trial of a search once that it waits."""

    sweep: Path
    """The search's folder."""
    _looked: float = 0.0
    _told: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        for left in self.sweep.glob(f"t*/*/{WAITING}"):  # by processes that died
            left.unlink(missing_ok=True)

    def look(self) -> list[str]:
        """The lines that are to be said now."""
        now = time.monotonic()
        if now < self._looked + LOOK_S:
            return []
        self._looked, lines = now, []
        for file in sorted({*self.sweep.glob(f"t*/*/{WAITING}")} - self._told):
            with suppress(OSError):  # it has just begun
                why = file.read_text()
                lines.append(f"trial {int(file.parts[-3][1:])} waits to begin: {why}")
                self._told.add(file)
        return lines


def catch_up(sweep: Sweep) -> int:
    """Sends what trials that ended could not send; returns how many events still wait."""
    ended = (record.parent for record in sweep.directory.glob(f"t*/{TRIAL}"))
    markers = (marker for trial in ended for marker in trial.glob("*/run.json"))
    runs = [Run.load(marker, sweep.parent.uri) for marker in markers]
    return sent([run for run in runs if waits(run)]).left


def resend(place: Place, uri: str | None) -> Resent:
    """Sends what waits in a folder, or of a run in a store; ValueError if that is not possible."""
    if not isinstance(place, Store):
        return tracking.resend(place, uri)
    copy = working_copy(place, "driver")
    with held(place):
        mirror = Mirror(place, copy)
        try:
            mirror.clear()
            mirror.pull()
            found = tracking.resend(copy, uri)
            mirror.push()
        except StoreError as error:
            raise ValueError(f"the run could not be read or written: {error}") from None
    return found
