"""Says whether another trial of a search may start: all of its drivers count the same ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from vamf.cluster.search.budget import BudgetClock
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study_database import database
from vamf.cluster.search.trials import load_trials

ALL_TAKEN = "all trials of the search have ended or are running"
"""Why no other trial may start, if the search has a number of them."""


@dataclass(frozen=True)
class Admission:
    """What a search's number of trials and its budget leave; asked in a driver's turn.

    Ray Tune writes it to the disk: a database on a server goes there without its password.
    """

    directory: Path
    """The search's folder."""
    name: str
    """The study's name."""
    storage: Any
    """The study's database, as Optuna's functions take it."""
    trials: int | None
    """The number of trials, None for as many as the budget allows."""
    clock: BudgetClock
    """The rest of the budget."""

    @classmethod
    def of(cls, sweep: Sweep, clock: BudgetClock) -> "Admission":
        """That of a search's driver."""
        return cls(sweep.directory, sweep.name, database(sweep), sweep.trials, clock)

    def refusal(self) -> str | None:
        """Why no other trial may start; None if one may."""
        if self.trials is None and not self.clock.budget.limited:
            return None
        running = self._running()  # first: what ends in between is recorded before it is told
        records = load_trials(self.directory)
        running -= {trial.number for trial in records}
        if self.trials is not None and len(records) + len(running) >= self.trials:
            return ALL_TAKEN
        return self.clock.exhausted(records, len(running))

    def _running(self) -> set[int]:
        """The numbers of the trials that a driver has started and that have not ended."""
        if self.name not in optuna.get_all_study_names(self.storage):
            return set()
        study = optuna.load_study(study_name=self.name, storage=self.storage)
        states = (optuna.trial.TrialState.RUNNING,)
        return {trial.number for trial in study.get_trials(deepcopy=False, states=states)}
