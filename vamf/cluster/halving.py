"""Ending trials early that others beat: asynchronous successive halving by Pareto rank.

Optuna 5 prunes by one objective only (optuna/optuna#3450), and so do Ray Tune's schedulers; what
these stop leaves its workers behind. So a trial asks at a rung, and ends by itself.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vamf.cluster.pareto import places, ranks
from vamf.cluster.trials import trial_folder
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.training.evaluation import Metrics

RECORDS = "rung_*.json"
"""The files that a trial leaves at rungs in its folder."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Which trials of a search end early."""

    rungs: tuple[int, ...] = ()
    """Steps of a trial's first seed at which it ends unless it is among the best that came there;
    by default all trials are trained to their end. beta = 0 always is: others are compared with it.
    Not before there is something to tell: what has learnt nothing has a small loss variance."""
    keep: float = 0.5
    """Share of those that came to a rung that goes on from there."""

    def check(self, experiment: Experiment) -> None:
        """Raises ValueError unless the rungs are steps before the last one."""
        if not 0 < self.keep < 1:
            raise ValueError(f"halving.keep must lie between 0 and 1; got {self.keep}")
        wrong = [step for step in self.rungs if not 0 < step < experiment.steps]
        if wrong:
            raise ValueError(
                f"halving.rungs must lie between 0 and the {experiment.steps} steps; got {wrong[0]}"
            )


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Whether a trial ends at a rung: a function of the files that trials leave at rungs."""

    halving: Halving
    sweep: Path
    """The search's folder."""
    trial: int
    """The trial's number."""
    objectives: tuple[str, ...]
    spared: bool
    """Whether this trial is measured, but never ended."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which to ask."""
        return self.halving.rungs

    def __call__(self, step: int, metrics: Metrics, seconds: float) -> str | None:
        """Why training ends at this step, or None; the answer is kept, and given again.

        The best are those on the first fronts of non-dominated sorting, and in the front that is
        cut those that are least crowded; equally good ones go on. ``seconds`` is what ``metrics``
        cost.
        """
        path = _record(self.sweep, self.trial, step)
        if path.exists() and "stopped" in (known := json.loads(path.read_text())):
            return known["stopped"]
        values = [metrics[name].value for name in self.objectives]
        own = {"values": values, "seconds": seconds}
        write_whole(path, json.dumps(own))  # at once, for those that come at the same time
        stopped = None if self.spared else self._verdict(step, values)
        write_whole(path, json.dumps({**own, "stopped": stopped}))
        return stopped

    def _verdict(self, step: int, values: list[float]) -> str | None:
        if not _finite(values):
            return f"step {step}: its figures are not finite"
        own = _record(self.sweep, self.trial, step)
        others = [path for path in self.sweep.glob(f"t*/{own.name}") if path != own]
        known = []
        for path in others:
            with suppress(FileNotFoundError):  # of a trial that is being given up
                known.append(json.loads(path.read_text())["values"])
        points = np.array([values, *filter(_finite, known)])
        place, count = int(places(points)[0]), len(points)
        if place < math.ceil(self.halving.keep * count):
            return None
        return f"step {step}: place {place + 1} of {count}, on front {ranks(points)[0]}"


def seconds_at_rungs(sweep: Path, trial: int) -> float:
    """What a trial's measurements at rungs took, beyond those that it would have made anyway."""
    records = trial_folder(sweep, trial).glob(RECORDS)
    return sum(json.loads(path.read_text())["seconds"] for path in records)


def forget(folder: Path) -> None:
    """Deletes what a trial that is given up left at rungs: it counts for no other any more."""
    for path in folder.glob(RECORDS):
        path.unlink()


def _record(sweep: Path, trial: int, step: int) -> Path:
    return trial_folder(sweep, trial) / f"rung_{step:08d}.json"


def _finite(values: list[float]) -> bool:
    return all(map(math.isfinite, values))
