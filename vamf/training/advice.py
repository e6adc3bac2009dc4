"""Says before a training what its user would otherwise see from its samples."""

from vamf.experiment import Experiment
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.output import say

SHARE = 0.05
"""Part of random weights in a moving average that can be seen in its samples."""

LEAST = 0.05
"""The smallest alpha over which a difference is useful in bfloat16."""


def advise(experiment: Experiment) -> None:
    """Prints notes about settings with which a training is likely to give noise."""
    for note in (_of_average(experiment), _of_target(experiment), _of_difference(experiment)):
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


def _of_difference(experiment: Experiment) -> str:
    """Empty unless a difference over a small alpha is taken in bfloat16.

    Its rounding error grows as 1 / alpha. On digits it is 0.24 of du/dt at alpha = 0.05, where the
    difference itself is 0.13 off, and 2.2 at 0.005 (5e-5 of that in float32).
    """
    loss = experiment.loss
    if not isinstance(loss, AlphaFlowLoss) or experiment.compute.precision != "bfloat16":
        return ""
    constant = loss.alpha.value
    least = loss.alpha.clamp if constant is None else constant
    if least >= LEAST or constant == 0:
        return ""
    clamp = f"--set loss.alpha.clamp={LEAST:g} takes the derivative below that, or "
    return (
        f"alpha-Flow's difference over alpha = {least:g} has a large rounding error in bfloat16: "
        f"{clamp if constant is None else 'use '}--compute.precision float32"
    )
