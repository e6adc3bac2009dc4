"""The trials of a search as files: one record for each, written by the trial's process."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vamf.files import make_folder, write_whole
from vamf.metrics.distances import Measurement, mean_with_error
from vamf.run_layout import TRIAL, TRIALS, trial_name
from vamf.training.evaluation import Metrics


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a search: its settings, and how it ended."""

    number: int
    """Its number in the Optuna study."""
    settings: dict[str, Any]
    """The settings that differ from the search's experiment, by dotted name."""
    label: str
    """Its beta, and what else was varied, for people to read."""
    baseline: bool = False
    """Whether it is the space's first point, with which verdicts compare the others."""
    seconds: float = 0.0
    """Wall-clock seconds of training, over all seeds and attempts."""
    gpu_seconds: float = 0.0
    """The sum of the seconds of its processes on GPUs."""
    metrics: Metrics = field(default_factory=dict)
    """Mean over seeds, with its standard error; of one seed, the evaluation's own error."""
    seeds: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each seed."""
    error: str | None = None
    """Why it failed, if it did."""
    stopped: str | None = None
    """Why it was ended early, if it was."""
    steps: int = 0
    """Steps trained, over all seeds."""
    seconds_at_rungs: float = 0.0
    """Seconds, of ``seconds``, of the measurements at rungs."""

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end, and thus has metrics."""
        return self.error is None and self.stopped is None

    def first(self, seeds: int) -> float:
        """The share of its trainings that are of its first ``seeds`` seeds; 1 if it has no more."""
        return min(seeds / max(len(self.seeds), 1), 1.0)

    def save(self, folder: Path) -> None:
        """Writes its record atomically."""
        make_folder(folder, above=0)
        write_whole(folder / TRIAL, json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what ``save`` wrote; records of older searches name their baseline by its label."""
        data = json.loads((folder / TRIAL).read_text())
        data.setdefault("baseline", data["label"] == "β=0.000")
        data["metrics"] = {name: Measurement(*pair) for name, pair in data["metrics"].items()}
        return cls(**data)


def not_finite(metrics: Metrics, objectives: Sequence[str]) -> str | None:
    """One line that names an objective that is infinite or not a number; None if all are finite."""
    for name in objectives:
        if name in metrics and not math.isfinite(value := metrics[name].value):
            return f"objective {name} is not finite: {value}"
    return None


def checked(trial: Trial, objectives: Sequence[str]) -> Trial:
    """The trial; with an error if it is complete and an objective is not finite.

    Records of older searches hold such trials without an error.
    """
    error = not_finite(trial.metrics, objectives) if trial.complete else None
    return trial if error is None else replace(trial, error=error)


def trial_folder(sweep: Path, number: int) -> Path:
    """The folder of a trial."""
    return sweep / trial_name(number)


def load_trials(sweep: Path) -> list[Trial]:
    """All trials of a sweep that have a record, by number."""
    found = (Trial.load(path.parent) for path in sweep.glob(f"{TRIALS}/{TRIAL}"))
    return sorted(found, key=lambda trial: trial.number)


def over_seeds(runs: list[Metrics]) -> Metrics:
    """Means over seeds with their standard errors; a single seed keeps its own errors.

    Metrics that a seed lacks are left out.
    """
    if len(runs) == 1:
        return runs[0]
    import torch

    common = [name for name in runs[0] if all(name in run for run in runs)]
    values = {name: [run[name].value for run in runs] for name in common}
    return {
        name: mean_with_error(torch.tensor(value, dtype=torch.float64))
        for name, value in values.items()
    }
