"""Computes the training that ending trials early saved."""

from collections.abc import Sequence
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
    """Steps that were not trained, over all seeds."""
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


def savings(trials: Sequence[Trial], full: int) -> Savings:
    """The savings of trials of ``full`` steps each.

    The estimate for a trial trained to its end is the mean of the complete ones without their
    measurements at rungs; the time that all trials took is subtracted from the sum.
    """
    complete = [trial for trial in trials if trial.complete]
    stopped = [trial for trial in trials if trial.stopped is not None]
    own = [trial.seconds - trial.seconds_at_rungs for trial in complete]
    count = len(complete) + len(stopped)
    without = count * mean(own) if own else float("nan")
    spent = sum(trial.seconds for trial in (*complete, *stopped))
    return Savings(
        stopped=len(stopped),
        trials=count,
        steps=sum(full - trial.steps for trial in stopped),
        all_steps=full * count,
        seconds=without - spent,
        all_seconds=without,
    )
