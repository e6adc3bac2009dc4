"""The hours that a search may take."""

import time
from dataclasses import dataclass, field
from statistics import mean

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.trials import Trial

HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a search stops starting trials; those that run are always trained to their end."""

    hours: float | None = None
    """Hours that this command may take: no trial starts that would end later, by the mean time of
    those that ended. A search that is resumed has them again."""
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

    def require_room(self, trials: list[Trial]) -> None:
        """Raises ValueError if the next trial would not end within the budget."""
        if (why := BudgetClock(self).exhausted(trials)) is not None:
            raise ValueError(f"the budget must have room for another trial; got {why}")


@dataclass
class BudgetClock:
    """Tells whether another trial fits the rest of a budget."""

    budget: Budget
    start: float = field(default_factory=lambda: time.time())
    """Unix time at which the hours begin."""

    @property
    def end(self) -> float:
        """Unix time after which no trial may start."""
        hours = self.budget.hours
        return float("inf") if hours is None else self.start + hours * HOUR_S

    def exhausted(self, trials: list[Trial], running: int = 0) -> str | None:
        """Why no other trial may start, given those that ended and how many run; None if one may.

        A trial is expected to take as long as the mean complete one; before there is one, no time.
        """
        budget, known = self.budget, [trial for trial in trials if trial.complete]
        seconds = mean(trial.seconds for trial in known) if known else 0.0
        if time.time() + seconds > self.end:
            return f"hours={budget.hours:g}, and {seconds:.0f} s for a trial"
        if budget.gpu_hours is not None:
            expected = mean(trial.gpu_seconds for trial in known) if known else 0.0
            spent = sum(trial.gpu_seconds for trial in trials) + running * expected
            if spent + expected > budget.gpu_hours * HOUR_S or spent >= budget.gpu_hours * HOUR_S:
                return (
                    f"gpu_hours={budget.gpu_hours:g}, of which {spent / HOUR_S:.3g} are spent, "
                    f"and {expected:.0f} GPU-seconds for a trial"
                )
        return None
