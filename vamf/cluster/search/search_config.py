"""The settings of a search as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vamf import commands
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.halving import Halving
from vamf.experiment import Experiment
from vamf.run_layout import STUDY
from vamf.store import StoragePath, Store
from vamf.tracking import Run
from vamf.tracking.run import sqlite


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings of a search, which its trials read."""

    directory: Path
    """Its folder: the study, and a folder for each trial."""
    space: str
    """Name of its search space."""
    experiment: Experiment
    """The experiment that the trials vary."""
    preset: str
    """Name of the preset that the experiment came from."""
    objectives: tuple[str, ...]
    """Metrics to minimise, by their full names."""
    trials: int | None
    """The number of trials; None for as many as the budget allows."""
    seeds: int
    """Trainings for each point, with seeds experiment.seed, + 1, ..."""
    parent: Run
    """The sweep's own MLflow run."""
    scaling: Scaling = field(default_factory=Scaling)
    """Resources of a trial."""
    halving: Halving = field(default_factory=Halving)
    """Which trials end early."""
    budget: Budget = field(default_factory=Budget)
    """When it stops starting trials."""
    front_seeds: int | Literal["auto"] | None = None
    """Trainings for each point that is on or next to the front, see `extra_seeds`."""
    baseline: Mapping[str, Any] | None = None
    """The settings of the space's first point, with which others are compared; None if older."""
    study: str = field(default="", repr=False)
    """The address of the study's database, perhaps with a password; empty for a file."""
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of points that have a name: ``NAMED`` of the space, if it has that."""
    store: Store | None = None
    """The location in an object store of which the folder is a copy, if it is one."""
    name: str = ""
    """The sweep's name, in the study too: by default its folder's, which may be moved later."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.directory.name)

    def is_baseline(self, settings: Mapping[str, Any]) -> bool:
        """Whether a trial's settings are those of the baseline."""
        if self.baseline is not None:
            return dict(self.baseline) == dict(settings)
        return self.label_of(settings) == "β=0.000"

    def label_of(self, settings: Mapping[str, Any]) -> str:
        """A trial's name, or its beta, if it was varied, and all else: ``β=0.500 lr=0.001``."""
        for name, known in self.named.items():
            if known == settings:
                return name
        betas = [name for name in settings if name.startswith("beta.")]
        label = [self.experiment.override(settings).beta.label] if betas else []
        leaves = [name.rpartition(".")[2] for name in settings]
        for name, value in settings.items():
            if name not in betas:
                leaf = name.rpartition(".")[2]
                shown = leaf if leaves.count(leaf) == 1 else name
                number = isinstance(value, float)
                label.append(f"{shown}={value:.3g}" if number else f"{shown}={value}")
        return " ".join(label)

    @property
    def resume_command(self) -> str:
        """The command that resumes it."""
        return commands.shown("tune", "--resume", self.location)

    @property
    def location(self) -> StoragePath:
        """The store or the folder by which users name the search."""
        return self.directory if self.store is None else self.store

    @property
    def announcement(self) -> str:
        """One line on what is searched, and where."""
        count = "as many trials as the budget allows" if self.trials is None else self.trials
        trials = f"{count}, each" if self.trials is None else f"{count} trials"
        return (
            f"searching {self.space}: {trials} of {self.seeds} x {self._steps} steps, in "
            f"{self.location}"
        )

    @property
    def _steps(self) -> str:
        """The steps of a training, or the fewest and the most."""
        own = self.experiment.steps
        steps = sorted({known.get("steps", own) for known in self.named.values()} or {own})
        return str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"

    @property
    def storage(self) -> str:
        """The study's database, as Optuna and optuna-dashboard take it."""
        return self.study or storage(self.directory)


def storage(directory: Path) -> str:
    """The database of the study of the search in a folder."""
    return sqlite(directory / STUDY)
