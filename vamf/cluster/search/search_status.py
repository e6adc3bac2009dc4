"""The text beside a search's progress bar."""

from collections.abc import Iterator, Sequence

from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trials import Trial, checked, load_trials


class SearchStatus:
    """How many trials of a search ended, run and failed, and the best values so far."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.read()

    def read(self) -> None:
        """Reads the records of the trials that ended; raises OSError or ValueError if it cannot."""
        trials = load_trials(self._sweep.directory)
        self._trials = [checked(trial, self._sweep.objectives) for trial in trials]

    def text(self, running: int) -> str:
        """One line, with the number of trials that run now."""
        failed = sum(trial.error is not None for trial in self._trials)
        of = "" if self._sweep.trials is None else f" of {self._sweep.trials}"
        done = f"{len(self._trials) - failed}{of} trials done"
        found = best(self._trials, self._sweep.objectives)
        return ", ".join([done, f"{running} running", f"{failed} failed", *found])


def best(trials: Sequence[Trial], objectives: Sequence[str]) -> Iterator[str]:
    """The least value of each objective among complete trials, and whose it is."""
    for name in objectives:
        known = [trial for trial in trials if trial.complete and name in trial.metrics]
        if known:
            least = min(known, key=lambda trial: trial.metrics[name].value)
            value = least.metrics[name].value
            yield f"best {name.removeprefix('eval/')} {value:.4g} (trial {least.number})"
