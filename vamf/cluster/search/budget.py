"""The hours that a search may take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.trials import Trial
from vamf.training.elapsed_time import Spent

HOUR_S = 3600.0

RESERVE = 1 / 3
"""Share of a budget that is kept for more seeds in a search that adds them to what decides it: as
much as four seeds in place of two cost for half of the points."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a search stops starting trials; those that run are always trained to their end."""

    hours: float | None = None
    """Hours that this command may take: no trial starts that would end later, by the mean time of
    those that ended. A search that is resumed has them again. With --seeds auto, and with --resume
    --seeds, a third of them is kept for the seeds that are added."""
    gpu_hours: float | None = None
    """The same for the GPU-hours of all trials together, those before a resumption included."""

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.hours is not None or self.gpu_hours is not None

    def check(self, scaling: Scaling) -> None:
        """Raises ValueError unless hours are positive and GPU-hours can be spent."""
        for name, hours in (("hours", self.hours), ("gpu_hours", self.gpu_hours)):
            if hours is not None and not 0 < hours < float("inf"):
                raise ValueError(f"{name} must be positive; got {hours}")
        if self.gpu_hours is not None and scaling.gpus == 0:
            raise ValueError("gpu_hours needs trials on GPUs; got scaling.gpus=0")


@dataclass
class BudgetClock:
    """Tells whether another trial, or another seed of one, fits the rest of a budget.

    One seed is expected to take as long as those of the complete trials on average; before there
    is such a trial, no time.
    """

    budget: Budget
    start: float = field(default_factory=lambda: time.time())
    """Unix time at which the hours begin."""
    seeds: int = 1
    """Trainings of a new trial."""
    reserve: float = 0.0
    """Share of the budget that new trials leave for more seeds."""

    @property
    def end(self) -> float:
        """Unix time after which no trial may start."""
        return self._end(self.reserve)

    def last_start(self, trials: Sequence[Trial]) -> float:
        """Unix time after which no additional seed may start, as it would end too late."""
        return self._end(0.0) - _one_seed(trials).seconds

    def exhausted(self, trials: Sequence[Trial], running: int = 0) -> str | None:
        """Why no other trial may start, given those that ended and how many run; None if one may.

        The reserve is left for more seeds, but for what these have taken already.
        """
        one, gpu_hours = _one_seed(trials), self.budget.gpu_hours or 0.0
        added = sum(trial.gpu_seconds * (1 - trial.first(self.seeds)) for trial in trials)
        kept = max(self.reserve * gpu_hours - added / HOUR_S, 0.0)
        trial = Spent(self.seeds * one.seconds, self.seeds * one.gpu_seconds)
        return self._refusal(trials, running, trial, "a trial", self.reserve, kept)

    def seed_exhausted(self, trials: Sequence[Trial], running: int = 0) -> str | None:
        """Why no trial may get another seed, given how many get one now; None if one may."""
        return self._refusal(trials, running, _one_seed(trials), "a seed", 0.0, 0.0)

    def _refusal(
        self,
        trials: Sequence[Trial],
        running: int,
        expected: Spent,
        what: str,
        share: float,
        kept: float,
    ) -> str | None:
        """Why a training of the ``expected`` time may not start; None if it may.

        ``share`` of the hours and ``kept`` GPU-hours are left for more seeds.
        """
        budget = self.budget
        if time.time() + expected.seconds > self._end(share):
            hours = share * (budget.hours or 0.0)
            for_seeds = f", of which {hours:.3g} are kept for more seeds" if share else ""
            return f"hours={budget.hours:g}{for_seeds}, and {expected.seconds:.0f} s for {what}"
        if budget.gpu_hours is not None:
            spent = sum(trial.gpu_seconds for trial in trials) + running * expected.gpu_seconds
            room = (budget.gpu_hours - kept) * HOUR_S
            if spent + expected.gpu_seconds > room or spent >= room:
                for_seeds = f", {kept:.3g} are kept for more seeds" if kept else ""
                return (
                    f"gpu_hours={budget.gpu_hours:g}, of which {spent / HOUR_S:.3g} are spent"
                    f"{for_seeds}, and {expected.gpu_seconds:.0f} GPU-seconds for {what}"
                )
        return None

    def _end(self, reserve: float) -> float:
        hours = self.budget.hours
        return float("inf") if hours is None else self.start + (1 - reserve) * hours * HOUR_S


def _one_seed(trials: Sequence[Trial]) -> Spent:
    """The mean time of a training of the complete trials."""
    known = [(trial, max(len(trial.seeds), 1)) for trial in trials if trial.complete]
    if not known:
        return Spent()
    return Spent(
        mean(trial.seconds / seeds for trial, seeds in known),
        mean(trial.gpu_seconds / seeds for trial, seeds in known),
    )
