"""What a search found: its trials, the Pareto front, and both in a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from optuna._hypervolume import compute_hypervolume

from vamf.cluster.pareto import front
from vamf.cluster.savings import Savings, savings
from vamf.cluster.smooth import Smooth, smooth
from vamf.cluster.sweep import Sweep
from vamf.cluster.trials import Trial, judged, load_trials
from vamf.cluster.verdicts import verdicts


@dataclass(frozen=True, kw_only=True)
class Results:
    """A finished, or interrupted, search."""

    objectives: tuple[str, ...]
    trials: list[Trial]
    """All that ended, by number; failed ones, and those with an objective that is not finite, have
    an ``error``."""
    front: frozenset[int]
    """Numbers of the trials that no other beats in every objective."""
    hypervolume: float
    """What the front dominates, up to ``reference``."""
    reference: tuple[float, ...]
    """A tenth beyond the worst value of each objective: compare hypervolumes of one sweep only."""
    savings: Savings | None = None
    """What ending trials early saved, if it was asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", [judged(t, self.objectives) for t in self.trials])

    @property
    def complete(self) -> list[Trial]:
        """Trials with figures, of which every objective is finite."""
        return [trial for trial in self.trials if trial.complete]

    @cached_property
    def smooth(self) -> Smooth | None:
        """Both objectives fitted over beta, where beta alone was searched."""
        return smooth(self.complete, self.objectives)

    @property
    def best(self) -> Trial | None:
        """The trial of the front with the smallest last objective, the distance."""
        on_front = [trial for trial in self.complete if trial.number in self.front]
        last = self.objectives[-1]
        return min(on_front, key=lambda trial: trial.metrics[last].value, default=None)


def gather(sweep: Sweep) -> Results:
    """Reads the records of a sweep's trials."""
    trials = [judged(trial, sweep.objectives) for trial in load_trials(sweep.directory)]
    done, names = [trial for trial in trials if trial.complete], sweep.objectives
    rows = [[trial.metrics[name].value for name in names] for trial in done]
    values = np.array(rows, dtype=float).reshape(-1, len(names))
    reference = _beyond(values) if done else np.zeros(len(names))
    full = sweep.seeds * sweep.experiment.steps
    return Results(
        objectives=names,
        trials=trials,
        front=frozenset(done[index].number for index in np.flatnonzero(front(values))),
        hypervolume=float(compute_hypervolume(values, reference)) if done else 0.0,
        reference=tuple(float(value) for value in reference),
        savings=savings(trials, full) if sweep.halving.rungs else None,
    )


def _beyond(values: np.ndarray) -> np.ndarray:
    """A tenth beyond the worst of (trials, objectives) in each objective, which may be negative."""
    worst = values.max(0)
    return np.asarray(worst + 0.1 * np.abs(worst))


def table(results: Results) -> str:
    """The trials in Markdown, ordered by the distance; the front is starred."""
    names = [name.removeprefix("eval/") for name in results.objectives]
    last = results.objectives[-1]
    compare = any(len(trial.seeds) > 1 for trial in results.complete)
    told = verdicts(results.complete, last)
    header = ["", "trial", "beta", *names, *(["against β=0"] if compare else []), "seconds"]
    rows = [
        [
            "*" if trial.number in results.front else "",
            str(trial.number),
            trial.label,
            *(str(trial.metrics[name]) for name in results.objectives),
            *([told[trial.number]] if compare else []),
            f"{trial.seconds:.0f}",
        ]
        for trial in sorted(results.complete, key=lambda trial: trial.metrics[last].value)
    ]
    others = [
        ["", str(t.number), t.label, f"failed: {t.error}" if t.error else f"stopped: {t.stopped}"]
        for t in results.trials
        if not t.complete
    ]
    return _markdown([header, *rows, *(row + [""] * (len(header) - len(row)) for row in others)])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
