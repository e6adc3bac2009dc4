"""Stages: several objectives in a row within one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from vamf.experiment_settings import Optimiser
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terminal_velocity import TerminalVelocityLoss
from vamf.flow.objectives.terms import ObjectiveRule
from vamf.flow.schedules import BetaOfTime, BetaSchedule
from vamf.flow.times import ClippedLogitNormalTimes, LogitNormalTimes, UniformTimes

Times = UniformTimes | LogitNormalTimes | ClippedLogitNormalTimes
Loss = MeanFlowLoss | AlphaFlowLoss | SemigroupLoss | TerminalVelocityLoss | DDPM | ObjectiveRule
Proxy = Literal["ema", "online", "head", "oracle", "batch", "reference"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the first steps of a run train; a field that is None is as in the experiment.

    Weights, their moving average and Adam's moments go on into the next stage. Warm-up, decay, beta
    and all else that moves over training begin anew.
    """

    share: float
    """Share of the run's steps, in (0, 1)."""
    loss: Loss | None = None
    """The objective."""
    times: Times | None = None
    """Distribution of the times (r, t)."""
    beta: BetaSchedule | BetaOfTime | None = None
    """Weight of the proxy in the jvp's tangent."""
    proxy: Proxy | None = None
    """The proxy of the marginal velocity."""
    optim: Optimiser | None = None
    """Adam and its learning rate."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"a stage's share must lie in (0, 1); got {self.share}")


def first_steps(stages: Sequence[Stage], steps: int) -> tuple[int, ...]:
    """The first step of each stage, counted from 0, and last that of the experiment's own.

    Raises ValueError unless each of them has a step.
    """
    ends = [round(share * steps) for share in accumulate(stage.share for stage in stages)]
    first = (0, *ends)
    if any(end <= begin for begin, end in zip(first, (*ends, steps), strict=True)):
        shares = ", ".join(f"{stage.share:g}" for stage in stages)
        raise ValueError(
            "each of the stages and the experiment itself after them must have a step: the sum of "
            f"shares must be less than 1; got {shares} of {steps} steps"
        )
    return first
