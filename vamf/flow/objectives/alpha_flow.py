"""alpha-Flow: from trajectory flow matching to MeanFlow (Zhang et al., arXiv 2510.20771)."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vamf.flow.objectives.meanflow import (
    Anchor,
    MeanFlowLoss,
    mean_flow_path,
    moving_tangent,
    path_point,
)
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, LossTerms, moved_to
from vamf.flow.trace import TraceWeight
from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity, expand_like


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
    u: AverageVelocity,
    value: Sample,
    z: Sample,
    r: Time,
    t: Time,
    v_tan: Sample,
    alpha: float | Tensor,
) -> Sample:
    """sg[(1 - alpha) (t - r) du/dt], du/dt by a difference over t - s = alpha (t - r), alpha > 0.

    The difference is (u(z, r, t) - u(z - (t - s) v_tan, r, s)) / (t - s), with ``value`` the first
    term; so the whole is (1 - alpha) / alpha times the numerator. No graph is kept.
    """
    with torch.no_grad():
        step = alpha * (t - r)
        earlier = u(z - expand_like(step, z) * v_tan, r, t - step)
        return (1 - alpha) / alpha * (value - earlier)


def path_difference(
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    alpha: float | Tensor,
    velocity: Sample | None = None,
) -> tuple[Sample, Sample, Sample, Sample]:
    """Returns z, v_cond, sg[(1 - alpha) (t - r) du/dt] and u(z, r, t), with its graph.

    As ``path_derivative``, with a difference of u for du/dt; 0 where r = t as well. ``alpha`` is a
    number in (0, 1], or a tensor () in (0, 1), whose value is not looked at.
    """
    z, v_cond = path_point(draws, velocity)
    value, n = u(z, draws.r, draws.t), draws.n_equal
    if n == len(z) or (not isinstance(alpha, Tensor) and alpha == 1):
        return z, v_cond, torch.zeros_like(z), value
    with torch.no_grad():
        v_tan = moving_tangent(draws, z, v_cond, beta, v_hat)
        parts = (value[n:], z[n:], draws.r[n:], draws.t[n:], v_tan)
        correction = secant_correction(u, *parts, alpha)
    return z, v_cond, torch.cat([torch.zeros_like(z[:n]), correction]), value


@dataclass(frozen=True, kw_only=True)
class AlphaFlowLoss:
    """|u - sg[alpha v_cond + (1 - alpha) u(z_s, r, s)]|^2 / alpha, s = alpha r + (1 - alpha) t.

    With z_s = z - (t - s) v_tan (arXiv 2510.20771). Its gradient is exactly that of MeanFlow's loss
    with (1 - alpha) times a difference quotient for du/dt; so it is computed, weighted and
    reported, as its own value goes to 0 with alpha. The way to z_s takes the mixed tangent, so that
    its limit is MeanFlow's loss at every beta; the regression target keeps v_cond.
    """

    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Weight of each sample by its own error."""
    trace: TraceWeight | None = None
    """A further factor of each sample's weight, small where its noise is amplified."""
    anchor: Anchor | None = None
    """Ties u near r = t to the velocity; needed when beta is near 1 for long."""
    alpha: AlphaSchedule = field(default_factory=AlphaSchedule)
    """While it is positive, du/dt is a difference quotient; at 0 the loss is MeanFlow's."""

    learns_velocity: ClassVar[bool] = True
    mixes_tangent: ClassVar[bool] = True
    has_landscape: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    @property
    def mean_flow(self) -> MeanFlowLoss:
        """The loss at alpha = 0."""
        return MeanFlowLoss(weight=self.weight, trace=self.trace, anchor=self.anchor)

    @property
    def probes(self) -> int:
        """Random signs of each sample that the trace weight needs."""
        return self.mean_flow.probes

    def __call__(
        self,
        u: AverageVelocity,
        draws: Draws,
        *,
        beta: Beta,
        v_hat: Velocity,
        anchor_uniform: Time | None = None,
        signs: Tensor | None = None,
        progress: float | None = None,
        velocity: Sample | None = None,
        cond_weight: Scalars | None = None,
        moved: float | Tensor | None = None,
    ) -> LossTerms:
        """See ``ObjectiveRule`` and ``Moving``; what moves is alpha."""
        alpha = moved_to(self, progress, moved)
        path = self.path(alpha, u, draws, beta, v_hat, velocity)
        return self.mean_flow.terms(u, draws, path, anchor_uniform, signs, cond_weight, v_hat)

    def moves_to(self, progress: float) -> float:
        """alpha at a progress of training."""
        return self.alpha(progress)

    def stands_apart(self, moved: float) -> bool:
        """Whether alpha is 0, where du/dt is a derivative, or 1, where it is not used."""
        return moved in (0, 1)

    def path(
        self,
        alpha: float | Tensor,
        u: AverageVelocity,
        draws: Draws,
        beta: Beta,
        v_hat: Velocity,
        velocity: Sample | None = None,
    ) -> tuple[Sample, Sample, Sample, Sample]:
        """z, v_cond, sg[(1 - alpha) (t - r) du/dt] and u(z, r, t), which ``mean_flow.terms`` takes.

        ``alpha`` is a number in [0, 1], or a tensor () in (0, 1), as in a recorded program.
        """
        if isinstance(alpha, Tensor) or alpha > 0:
            return path_difference(u, draws, beta, v_hat, alpha, velocity)
        return mean_flow_path(u, draws, beta, v_hat, velocity)
