"""Says before a training what its user would otherwise see from its samples."""

from vamf.experiment import Experiment
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.output import say

SHARE = 0.05
"""Part of random weights in a moving average that can be seen in its samples."""


def advise(experiment: Experiment) -> None:
    """Prints notes about settings with which a training is likely to give noise."""
    for note in (_of_average(experiment), _of_target(experiment)):
        if note:
            say(f"note: {note}")


def _of_average(experiment: Experiment) -> str:
    """Empty if the moving average will have forgotten the initial, random weights.

    After n steps it holds ema ** n of them. On digits a flow of 500 steps with 0.998 (37 %) has a
    distance of 16.8, one of 600 steps with 0.98 of 0.17 (vamf/training/README.md).
    """
    steps, held = experiment.steps, experiment.ema**experiment.steps
    if held <= SHARE or experiment.init is not None:
        return ""
    enough = 1 - min(float(f"{3.2 / steps:.2g}"), 1)  # exp(-3) is 5 %
    return (
        f"after {steps} steps the moving average, which is sampled and measured, still holds "
        f"{held:.0%} of the random weights it began with: ema is {experiment.ema:g}, and at most "
        f"{enough:g} would do"
    )


def _of_target(experiment: Experiment) -> str:
    """Empty unless a network's own output is part of its target, and each error counts as it is.

    On eight Gaussians such a loss was not finite after 550 steps (RESULTS.md of the reproduction).
    """
    loss = experiment.loss
    if not isinstance(loss, MeanFlowLoss) or not loss.gamma:
        return ""
    if experiment.proxy != "online" or loss.weight.p:
        return ""
    return (
        f"with loss.gamma {loss.gamma:g} and the proxy online the network's output is part of its "
        "own target, and an unweighted loss can grow without bound: --proxy ema does not do that"
    )
