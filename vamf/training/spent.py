"""The time that a run took, over all its attempts."""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vamf.distributed import Workers
from vamf.files import write_whole

SPENT = "spent.json"
"""The file in a run's folder that holds its seconds so far."""


class Spent(NamedTuple):
    """What training took."""

    seconds: float = 0.0
    """Of wall clock."""
    gpu_seconds: float = 0.0
    """Those of each process on a GPU, added."""


class Clock:
    """Counts on from what earlier attempts have left in a run's folder.

    What an attempt spent after its last ``save`` is not counted if its process dies.
    """

    def __init__(self, directory: Path, workers: Workers) -> None:
        self._file, self._start = directory / SPENT, time.monotonic()
        self._devices = workers.world if workers.device.type == "cuda" else 0
        self._before = spent_in([directory])

    def spent(self) -> Spent:
        """What the run has taken so far."""
        before, now = self._before, time.monotonic() - self._start
        return Spent(before.seconds + now, before.gpu_seconds + now * self._devices)

    def save(self) -> None:
        """Leaves it for the next attempt."""
        write_whole(self._file, json.dumps(self.spent()._asdict()))


def spent_in(directories: Iterable[Path]) -> Spent:
    """What the runs in some folders have taken, in all attempts."""
    total = Spent()
    for directory in directories:
        with suppress(OSError, ValueError, TypeError):  # there is none, or a damaged one
            one = Spent(**json.loads((directory / SPENT).read_text()))
            total = Spent(total.seconds + one.seconds, total.gpu_seconds + one.gpu_seconds)
    return total
