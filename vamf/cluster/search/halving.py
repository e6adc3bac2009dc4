"""Ends trials early that others dominate: asynchronous successive halving by Pareto rank.

Optuna 5 and Ray Tune's schedulers prune by one objective only (optuna/optuna#3450), and trials that
Ray Tune stops leave their workers running. So a trial decides at a rung whether it ends.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vamf.cluster.search.analysis.pareto import counts_of_better, ranks
from vamf.experiment import Experiment
from vamf.run_layout import RUNGS, TRIALS, rung_name, trial_name
from vamf.store import StoragePath, names, read, write
from vamf.training.evaluation import Metrics


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Which trials of a search end early."""

    rungs: tuple[int, ...] = ()
    """Steps of a trial's first seed at which it ends unless it is among the best that reached them;
    by default all trials are trained to their end. The baseline, a space's first point, never ends
    early. The first rung must not come too early: an untrained network has a small loss variance.
    """
    keep: float = 0.5
    """Share of the trials that reached a rung that continue."""

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
class ParetoPruner:
    """Decides whether a trial ends at a rung, from the files that trials write at rungs."""

    halving: Halving
    sweep: StoragePath
    """The search's folder, or its location in a store."""
    trial: int
    """The trial's number."""
    objectives: tuple[str, ...]
    never_ends: bool
    """Whether this trial is measured, but never ended early."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which to call this."""
        return self.halving.rungs

    def __call__(self, step: int, metrics: Metrics, seconds: float) -> str | None:
        """Why training ends at this step, or None; the answer is stored and returned again.

        See ``beaten``. ``seconds`` is the time that measuring ``metrics`` took.
        """
        name = f"{trial_name(self.trial)}/{rung_name(step)}"
        with suppress(FileNotFoundError):
            if "stopped" in (known := json.loads(read(self.sweep, name))):
                return known["stopped"]
        values = [metrics[name].value for name in self.objectives]
        own = {"values": values, "seconds": seconds}
        write(self.sweep, name, json.dumps(own))  # at once, as other trials may be at the rung now
        stopped = None if self.never_ends else self._verdict(step, values)
        write(self.sweep, name, json.dumps({**own, "stopped": stopped}))
        return stopped

    def _verdict(self, step: int, values: list[float]) -> str | None:
        own = f"{trial_name(self.trial)}/{rung_name(step)}"
        known = []
        for name in names(self.sweep, f"{TRIALS}/{rung_name(step)}"):
            with suppress(FileNotFoundError):  # the trial has just failed
                if name != own:
                    known.append(json.loads(read(self.sweep, name))["values"])
        why = beaten(values, known, self.halving.keep)
        return None if why is None else f"step {step}: {why}"


def beaten(values: Sequence[float], others: Sequence[Sequence[float]], keep: float) -> str | None:
    """Why a trial ends at a rung; None if it is among the best ``keep`` of all that reached it.

    ``values`` are its objectives, ``others`` those of the trials that reached the rung before. The
    best are those on the first fronts of non-dominated sorting, and on the last front among them
    those with the largest crowding distance; ties continue.
    """
    if not _finite(values):
        return "its objectives are not finite"
    points = np.array([values, *filter(_finite, others)])
    better, count = int(counts_of_better(points)[0]), len(points)
    if better < math.ceil(keep * count):
        return None
    return f"place {better + 1} of {count}, on front {ranks(points)[0]}"


def seconds_at_rungs(sweep: StoragePath, trial: int) -> float:
    """Seconds of a trial's measurements at rungs that it would not have made otherwise."""
    records = names(sweep, f"{trial_name(trial)}/{RUNGS}")
    return sum(json.loads(read(sweep, name))["seconds"] for name in records)


def delete_rung_records(folder: Path) -> None:
    """Deletes a failed trial's records at rungs, so that no other is compared with them."""
    for path in folder.glob(RUNGS):
        path.unlink()


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))
