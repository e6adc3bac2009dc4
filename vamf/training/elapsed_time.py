"""The time that a run took, summed over all attempts."""

import json
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vamf.distributed import Workers
from vamf.files import write_whole
from vamf.run_layout import SPENT


class Spent(NamedTuple):
    """The time that training took."""

    seconds: float = 0.0
    """Wall-clock seconds."""
    gpu_seconds: float = 0.0
    """Seconds of each process on a GPU times the GPUs that it has reserved, summed."""


class Clock:
    """Continues the count that earlier attempts saved in a run's folder.

    If a process dies, the time since its last ``save`` is not counted.
    """

    def __init__(self, directory: Path, workers: Workers, gpus: float = 1.0) -> None:
        """``gpus`` are those of each worker: a share, if others use the same one."""
        self._file, self._start = directory / SPENT, time.monotonic()
        self._gpus = workers.world * gpus if workers.device.type == "cuda" else 0.0
        self._before = spent_in([directory])
        self._pass = (0, self._start)
        self._taken = (0, 0.0)

    def spent(self) -> Spent:
        """The run's time so far."""
        before, now = self._before, time.monotonic() - self._start
        return Spent(before.seconds + now, before.gpu_seconds + now * self._gpus)

    def begin_steps(self, step: int) -> None:
        """Notes that the next steps begin now, after this one."""
        self._pass = step, time.monotonic()

    def seconds_of_step(self, step: int) -> float:
        """Mean seconds of the steps from ``begin_steps`` to this one, which has just ended."""
        first, then = self._pass
        return (time.monotonic() - then) / max(step - first, 1)

    def end_steps(self, step: int) -> None:
        """Notes that the steps since ``begin_steps`` have ended with this one."""
        (first, then), (steps, seconds) = self._pass, self._taken
        self._taken = steps + step - first, seconds + time.monotonic() - then

    def mean_step(self) -> float:
        """Mean seconds of a step since the last call; NaN without any."""
        (steps, seconds), self._taken = self._taken, (0, 0.0)
        return seconds / steps if steps else math.nan

    def save(self) -> None:
        """Saves the time for the next attempt."""
        write_whole(self._file, json.dumps(self.spent()._asdict()))


def spent_in(directories: Iterable[Path]) -> Spent:
    """The time of the runs in some folders, summed over all attempts."""
    total = Spent()
    for directory in directories:
        with suppress(OSError, ValueError, TypeError):  # missing or damaged
            one = Spent(**json.loads((directory / SPENT).read_text()))
            total = Spent(total.seconds + one.seconds, total.gpu_seconds + one.gpu_seconds)
    return total
