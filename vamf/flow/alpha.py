"""alpha-Flow: from trajectory flow matching to MeanFlow (Zhang et al., arXiv 2510.20771)."""

import math
from dataclasses import dataclass

import torch

from vamf.typing import AverageVelocity, Sample, Time, expand_like


@dataclass(frozen=True, kw_only=True)
class AlphaSchedule:
    """alpha over training progress: 1 is trajectory flow matching, 0 MeanFlow.

    1 / (1 + exp(sharpness q)) with q = (progress - (begin + finish) / 2) / (finish - begin), 1
    before ``begin`` and 0 after ``finish``; within ``clamp`` of 0 or 1 it is 0 or 1.
    """

    value: float | None = None
    """A constant alpha in [0, 1] in place of the curriculum."""
    begin: float = 0.0
    """Progress in [0, 1) at which the curriculum begins."""
    finish: float = 1.0
    """Progress in (begin, 1] from which on alpha is 0; step k of n is at k / n."""
    sharpness: float = 25.0
    """How steep the sigmoid is, positive."""
    clamp: float = 0.005
    """alpha this near 0 or 1 is 0 or 1, in [0, .5): the jvp takes over where differences cancel."""

    def __post_init__(self) -> None:
        if self.value is not None:
            if not 0 <= self.value <= 1:
                raise ValueError(f"alpha must lie in [0, 1]; got {self.value}")
            if (self.begin, self.finish, self.sharpness, self.clamp) != (0.0, 1.0, 25.0, 0.005):
                raise ValueError("a constant alpha takes no begin, finish, sharpness or clamp")
            return
        if not 0 <= self.begin < self.finish <= 1:
            raise ValueError(
                f"alpha needs 0 <= begin < finish <= 1; got {self.begin} and {self.finish}"
            )
        if not (self.sharpness > 0 and 0 <= self.clamp < 0.5):
            raise ValueError(
                "alpha needs a positive sharpness and a clamp in [0, .5); "
                f"got {self.sharpness} and {self.clamp}"
            )

    def __call__(self, progress: float) -> float:
        if self.value is not None:
            return self.value
        if not self.begin <= progress <= self.finish:
            return float(progress < self.begin)
        middle, width = (self.begin + self.finish) / 2, self.finish - self.begin
        alpha = (1 - math.tanh(self.sharpness * (progress - middle) / width / 2)) / 2
        if min(alpha, 1 - alpha) < self.clamp:
            return float(alpha > self.clamp)
        return alpha


def secant_correction(
    u: AverageVelocity, value: Sample, z: Sample, r: Time, t: Time, v_tan: Sample, alpha: float
) -> Sample:
    """sg[(1 - alpha) (t - r) du/dt], du/dt by a difference over t - s = alpha (t - r), alpha > 0.

    The difference is (u(z, r, t) - u(z - (t - s) v_tan, r, s)) / (t - s), with ``value`` the first
    term; so the whole is (1 - alpha) / alpha times the numerator. No graph is kept.
    """
    with torch.no_grad():
        step = alpha * (t - r)
        earlier = u(z - expand_like(step, z) * v_tan, r, t - step)
        return (1 - alpha) / alpha * (value - earlier)
