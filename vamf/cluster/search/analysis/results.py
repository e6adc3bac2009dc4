"""Collects a search's trials, their Pareto front and hypervolume, and formats a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna

from vamf import markdown
from vamf.cluster.search.analysis.beta_curve import Smooth, smooth
from vamf.cluster.search.analysis.importances import importances
from vamf.cluster.search.analysis.pareto import front, hypervolume
from vamf.cluster.search.analysis.pruning_savings import Savings, savings
from vamf.cluster.search.analysis.significance import verdicts
from vamf.cluster.search.analysis.slices import Slices, slices
from vamf.cluster.search.extra_seeds import rate
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import open_study
from vamf.cluster.search.study_database import study_names
from vamf.cluster.search.trials import Trial, checked, load_trials
from vamf.metrics import significance
from vamf.output import say
from vamf.run_layout import STUDY
from vamf.training.elapsed_time import Spent


@dataclass(frozen=True, kw_only=True)
class Results:
    """A finished, or interrupted, search."""

    objectives: tuple[str, ...]
    trials: list[Trial]
    """All with a record, by number; failed ones, and those with an objective that is not finite,
    have an ``error``."""
    front: frozenset[int]
    """Numbers of the trials that no other trial dominates."""
    hypervolume: float
    """The volume that the front dominates, up to ``reference``."""
    reference: tuple[float, ...]
    """A tenth beyond each objective's worst value; so only hypervolumes of one sweep compare."""
    savings: Savings | None = None
    """What ending trials early saved, if the search does that."""
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The share of each objective's variance that each parameter explains, from ten trials on."""
    slices: Slices | None = None
    """The objectives along each parameter, where several were searched, from ten trials on."""
    rate: float = significance.RATE
    """The expected share of false ones among the verdicts better and worse."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", [checked(t, self.objectives) for t in self.trials])

    @property
    def complete(self) -> list[Trial]:
        """Trials with metrics, of which every objective is finite."""
        return [trial for trial in self.trials if trial.complete]

    @property
    def spent(self) -> Spent:
        """The time of all trials, failed ones included."""
        return Spent(
            sum(trial.seconds for trial in self.trials),
            sum(trial.gpu_seconds for trial in self.trials),
        )

    @cached_property
    def smooth(self) -> Smooth | None:
        """Both objectives fitted over beta, where beta alone was searched."""
        return smooth(self.complete, self.objectives)

    @property
    def hypervolumes(self) -> list[float]:
        """The hypervolume after each complete trial, in the order of their numbers."""
        rows = [[t.metrics[name].value for name in self.objectives] for t in self.complete]
        reference = np.array(self.reference)
        return [hypervolume(np.array(rows[: n + 1]), reference) for n in range(len(rows))]

    @property
    def best(self) -> Trial | None:
        """The trial of the front with the smallest last objective, the distance."""
        on_front = [trial for trial in self.complete if trial.number in self.front]
        last = self.objectives[-1]
        return min(on_front, key=lambda trial: trial.metrics[last].value, default=None)


def gather(sweep: Sweep) -> Results:
    """Reads the records of a sweep's trials."""
    trials = [checked(trial, sweep.objectives) for trial in load_trials(sweep.directory)]
    done, names = [trial for trial in trials if trial.complete], sweep.objectives
    rows = [[trial.metrics[name].value for name in names] for trial in done]
    values = np.array(rows, dtype=float).reshape(-1, len(names))
    reference = _beyond(values) if done else np.zeros(len(names))
    study = _study(sweep)
    known = {trial.number: row for trial, row in zip(done, rows, strict=True)}
    return Results(
        objectives=names,
        trials=trials,
        front=frozenset(done[index].number for index in np.flatnonzero(front(values))),
        hypervolume=hypervolume(values, reference) if done else 0.0,
        reference=tuple(float(value) for value in reference),
        savings=_savings(sweep, trials) if sweep.halving.rungs else None,
        importances={} if study is None else importances(study, known, names),
        slices=None if study is None else slices(study, done, names),
        rate=rate(sweep),
    )


def _savings(sweep: Sweep, trials: Sequence[Trial]) -> Savings:
    known = [trial for trial in trials if trial.error is None]
    steps = {trial.number: sweep.experiment.override(trial.settings).steps for trial in known}
    return savings(known, sweep.seeds, steps)


def _study(sweep: Sweep) -> optuna.Study | None:
    """The sweep's study, if it has one already; without its database results lack what it tells."""
    if not sweep.study and not (sweep.directory / STUDY).exists():
        return None
    try:
        return open_study(sweep) if sweep.name in study_names(sweep) else None
    except ValueError as error:
        say(f"neither importances nor slices: {error}", error=True)
        return None


def _beyond(values: np.ndarray) -> np.ndarray:
    """A tenth beyond the worst of (trials, objectives) in each objective, which may be negative."""
    worst = values.max(0)
    return np.asarray(worst + 0.1 * np.abs(worst))


def table(results: Results) -> str:
    """The trials in Markdown, ordered by the distance; the front is starred."""
    names = [name.removeprefix("eval/") for name in results.objectives]
    last = results.objectives[-1]
    compare = any(len(trial.seeds) > 1 for trial in results.complete)
    compared = verdicts(results.complete, last, results.rate)
    base = next((trial.label for trial in results.complete if trial.baseline), "the baseline")
    alone = all(name.startswith("beta.") for t in results.trials for name in t.settings)
    against = [f"against {base}"] if compare else []
    counts = {len(trial.seeds) for trial in results.complete}
    seeds = ["seeds"] if len(counts) > 1 else []
    gpu = ["GPU-seconds"] if results.spent.gpu_seconds else []
    point = "beta" if alone else "point"
    header = ["", "trial", point, *names, *seeds, *against, "seconds", *gpu]
    rows = [
        [
            "*" if trial.number in results.front else "",
            str(trial.number),
            trial.label,
            *(str(trial.metrics[name]) for name in results.objectives),
            *([str(len(trial.seeds))] if seeds else []),
            *([compared[trial.number]] if compare else []),
            f"{trial.seconds:.0f}",
            *([f"{trial.gpu_seconds:.0f}"] if gpu else []),
        ]
        for trial in sorted(results.complete, key=lambda trial: trial.metrics[last].value)
    ]
    others = [
        ["", str(t.number), t.label, f"failed: {t.error}" if t.error else f"stopped: {t.stopped}"]
        for t in results.trials
        if not t.complete
    ]
    padded = [row + [""] * (len(header) - len(row)) for row in others]
    return markdown.table(header, [*rows, *padded])
