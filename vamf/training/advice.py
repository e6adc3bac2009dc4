"""Says before a training what its user would otherwise see from its samples."""

from vamf.experiment import Experiment
from vamf.output import say

SHARE = 0.05
"""Part of random weights in a moving average that can be seen in its samples."""


def advise(experiment: Experiment) -> None:
    """Prints a note if the moving average will not have forgotten the initial, random weights.

    After n steps it holds ema ** n of them. On digits a flow of 500 steps with 0.998 (37 %) has a
    distance of 16.8, one of 600 steps with 0.98 of 0.17 (vamf/training/README.md).
    """
    steps, held = experiment.steps, experiment.ema**experiment.steps
    if held <= SHARE or experiment.init is not None:
        return
    enough = 1 - min(float(f"{3.2 / steps:.2g}"), 1)  # exp(-3) is 5 %
    say(
        f"note: after {steps} steps the moving average, which is sampled and measured, still holds "
        f"{held:.0%} of the random weights it began with: ema is {experiment.ema:g}, and at most "
        f"{enough:g} would do"
    )
