"""A search as a value."""

from dataclasses import dataclass, field
from pathlib import Path

from vamf.cluster.halving import Halving
from vamf.cluster.scaling import Scaling
from vamf.experiment import Experiment
from vamf.tracking import Run
from vamf.tracking.run import sqlite

SWEEP = "sweep.json"
"""The file in a search's folder that says what it is."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search as a value: everything that its trials need to know."""

    directory: Path
    """Its folder: the study, and a folder for each trial."""
    space: str
    """Name of its search space."""
    experiment: Experiment
    """What the trials vary."""
    preset: str
    """Name of the preset that the experiment came from."""
    objectives: tuple[str, ...]
    """Figures to minimise, by their full names."""
    trials: int
    """How many points are tried."""
    seeds: int
    """Trainings for each point, with seeds experiment.seed, + 1, ..."""
    parent: Run
    """The sweep's own MLflow run."""
    scaling: Scaling = field(default_factory=Scaling)
    """Resources of a trial."""
    halving: Halving = field(default_factory=Halving)
    """Which trials end early."""
    name: str = ""
    """The sweep's name, in the study too: by default its folder's, which may be moved later."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.directory.name)

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        return f"python -m jobs.tune --resume {self.directory}"

    @property
    def announcement(self) -> str:
        """One line on what is about to happen, and where."""
        return (
            f"searching {self.space} beta: {self.trials} trials of {self.seeds} x "
            f"{self.experiment.steps} steps, in {self.directory}"
        )

    @property
    def storage(self) -> str:
        """The study's database, as Optuna and optuna-dashboard take it."""
        return storage(self.directory)


def storage(directory: Path) -> str:
    """The database of the study of the search in a folder."""
    return sqlite(directory / "study.db")
