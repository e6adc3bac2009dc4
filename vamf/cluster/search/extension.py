"""What changes when a search is resumed."""

from dataclasses import dataclass, replace
from typing import Literal

from vamf.cluster.search.budget import BudgetClock
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trials import load_trials


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What changes when a search is resumed; None for what stays."""

    trials: int | None = None
    """The number of trials, those before included."""
    seeds: int | Literal["auto"] | None = None
    """Trainings for the baseline and for points on and next to the front: a number, or "auto" for
    more where the verdict is open."""
    hours: float | None = None
    """Hours that this command may take; with added seeds a third of them is kept for those."""
    gpu_hours: float | None = None
    """GPU-hours of all trials, those before included."""

    def of(self, sweep: Sweep) -> Sweep:
        """The search with these changes.

        Raises ValueError for fewer trials or seeds than it has, and for a budget without room for
        another trial, or for another seed where seeds are added.
        """
        trials = load_trials(sweep.directory)
        if self.trials is not None and self.trials < len(trials):
            raise ValueError(f"the search has {len(trials)} trials already; got {self.trials}")
        if isinstance(self.seeds, int) and self.seeds < sweep.seeds:
            raise ValueError(f"each point has {sweep.seeds} seeds already; got {self.seeds}")
        limits = {"hours": self.hours, "gpu_hours": self.gpu_hours}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        budget = replace(sweep.budget, **given)
        budget.check(sweep.scaling)
        front_seeds = sweep.front_seeds if self.seeds is None else self.seeds
        clock = BudgetClock(budget, seeds=sweep.seeds)
        what = "another trial" if front_seeds is None else "another seed"
        room = clock.exhausted if front_seeds is None else clock.seed_exhausted
        if (why := room(trials)) is not None:
            raise ValueError(f"the budget must have room for {what}; got {why}")
        return replace(
            sweep,
            trials=sweep.trials if self.trials is None else self.trials,
            front_seeds=front_seeds,
            budget=budget,
        )


def require_same(before: Sweep, now: Sweep) -> None:
    """Raises ValueError if a search on which others work would be extended, but for its hours."""
    for name, old, new in (
        ("trials", before.trials, now.trials),
        ("seeds", before.front_seeds, now.front_seeds),
        ("gpu_hours", before.budget.gpu_hours, now.budget.gpu_hours),
    ):
        if new != old:
            raise ValueError(
                f"the {name} of a search must stay as they are while others work on it, {old}; "
                f"got {new}"
            )
