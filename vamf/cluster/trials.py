"""The trials of a search as files: one record each, written by the trial itself."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vamf.files import make_folder, write_whole
from vamf.metrics.distances import Measurement, mean_with_error
from vamf.training.evaluation import Metrics

TRIAL = "trial.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of a search: what was set, and how it ended."""

    number: int
    """Its number in the Optuna study."""
    settings: dict[str, Any]
    """What differs from the search's experiment, by dotted name."""
    label: str
    """Its beta, readably."""
    seconds: float = 0.0
    """Wall-clock seconds of training, over all seeds and attempts."""
    gpu_seconds: float = 0.0
    """The seconds of each of its processes on a GPU, added."""
    metrics: Metrics = field(default_factory=dict)
    """Mean over seeds, with its standard error; of one seed, the evaluation's own error."""
    seeds: list[dict[str, float]] = field(default_factory=list)
    """The figures of each seed."""
    error: str | None = None
    """Why it failed, if it did."""
    stopped: str | None = None
    """Why it was ended early, if it was."""
    steps: int = 0
    """Steps trained, over all seeds."""
    seconds_at_rungs: float = 0.0
    """What of ``seconds`` went into measurements for the sake of ending early."""

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end, and so has metrics."""
        return self.error is None and self.stopped is None

    def save(self, folder: Path) -> None:
        """Writes its record, whole or not at all."""
        make_folder(folder, above=0)
        write_whole(folder / TRIAL, json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what ``save`` wrote."""
        data = json.loads((folder / TRIAL).read_text())
        data["metrics"] = {name: Measurement(*pair) for name, pair in data["metrics"].items()}
        return cls(**data)


def not_finite(metrics: Metrics, objectives: Sequence[str]) -> str | None:
    """Which objective is infinite or not a number, in one line; None if none of them is."""
    for name in objectives:
        if name in metrics and not math.isfinite(value := metrics[name].value):
            return f"objective {name} is not finite: {value}"
    return None


def judged(trial: Trial, objectives: Sequence[str]) -> Trial:
    """The trial; one that was trained to its end and has an objective that is not finite failed.

    Records of older searches hold such trials without an error.
    """
    error = not_finite(trial.metrics, objectives) if trial.complete else None
    return trial if error is None else replace(trial, error=error)


def trial_folder(sweep: Path, number: int) -> Path:
    """Where a trial of a sweep keeps its files."""
    return sweep / f"t{number:03d}"


def load_trials(sweep: Path) -> list[Trial]:
    """All trials of a sweep that ended, by number."""
    found = (Trial.load(path.parent) for path in sweep.glob(f"t*/{TRIAL}"))
    return sorted(found, key=lambda trial: trial.number)


def over_seeds(runs: list[Metrics]) -> Metrics:
    """Means over seeds with the spread's standard error; a single seed keeps its own."""
    if len(runs) == 1:
        return runs[0]
    import torch

    values = {name: [run[name].value for run in runs] for name in runs[0]}
    return {
        name: mean_with_error(torch.tensor(value, dtype=torch.float64))
        for name, value in values.items()
    }
