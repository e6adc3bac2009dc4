"""Computes the training that ending trials early saved."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from vamf.cluster.search.trials import Trial


class Savings(NamedTuple):
    """What was saved against training the same trials to their end, without failed ones."""

    stopped: int
    """Trials that were ended early."""
    trials: int
    """Trials that were ended early or are complete."""
    steps: int
    """Steps that were not trained, over all seeds of the search."""
    all_steps: int
    """Steps that all would have taken."""
    seconds: float
    """Trial time that was saved; negative if measuring at rungs took more. NaN if unknown."""
    all_seconds: float
    """Trial time that all would have taken."""

    def __str__(self) -> str:
        return (
            f"{self.stopped} of {self.trials} trials ended early: {self.steps} of "
            f"{self.all_steps} steps not trained, {self.seconds:.0f} of {self.all_seconds:.0f} s "
            "of trial time saved, by the mean complete trial less its measurements at rungs"
        )


def savings(trials: Sequence[Trial], seeds: int, steps: Mapping[int, int]) -> Savings:
    """The savings of trials of so many seeds each; ``steps`` are those of a seed, by trial.

    Seeds that were added to complete trials are left out, with their share of the time. The
    estimate for a trial trained to its end is the mean of the complete ones of as many steps,
    without their measurements at rungs; where there are none, its own pace. The time that all
    trials took is subtracted from the sum.
    """
    complete = [trial for trial in trials if trial.complete]
    stopped = [trial for trial in trials if trial.stopped is not None]
    own = {trial.number: _without_rungs(trial) * trial.first(seeds) for trial in complete}
    whole = 0.0
    for trial in stopped:
        alike = [own[t.number] for t in complete if steps[t.number] == steps[trial.number]]
        pace = _without_rungs(trial) / trial.steps if trial.steps else float("nan")
        whole += mean(alike) if alike else pace * seeds * steps[trial.number]
    spent = sum(trial.seconds for trial in stopped)
    spent += sum(trial.seconds_at_rungs for trial in complete)
    return Savings(
        stopped=len(stopped),
        trials=len(complete) + len(stopped),
        steps=sum(seeds * steps[trial.number] - trial.steps for trial in stopped),
        all_steps=sum(seeds * steps[trial.number] for trial in (*complete, *stopped)),
        seconds=whole - spent,
        all_seconds=sum(own.values()) + whole,
    )


def _without_rungs(trial: Trial) -> float:
    return trial.seconds - trial.seconds_at_rungs
