"""Terminal velocity matching: the velocity at the end of a step (Zhou et al., arXiv 2511.19797)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vamf.flow.derivatives import terminal_derivative
from vamf.flow.duals import in_dual_mode
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, LossTerms, squared_norm
from vamf.flow.path import interpolate
from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity, expand_like


@dataclass(frozen=True, kw_only=True)
class BoundaryTime:
    """The time of the flow-matching term, sigmoid(mean + std N(0, 1)), of its own for each sample.

    The defaults are those of the authors' code.
    """

    mean: float = -0.4
    """Mean of the normal variable; negative favours times near the data."""
    std: float = 1.0
    """Standard deviation of the normal variable, positive."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"loss.boundary.std must be positive; got {self.std}")

    def __call__(self, uniform: Time) -> Time:
        """The times for uniform numbers in [0, 1]: the distribution's quantiles."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))


@dataclass(frozen=True, kw_only=True)
class TerminalVelocityLoss:
    """|u - (t - r) du/dr - sg[v_hat(f, r)]|^2 + |u(z_s, s, s) - v_cond|^2, f = z - (t - r) u.

    f(r) is where a step from (z, t) arrives, and u - (t - r) du/dr is its derivative in r, which
    must be the velocity there (arXiv 2511.19797, section 3). The tangent (0, 1, 0) of (z, r, t) has
    no v_cond in it, so there is no beta. v_hat is the proxy of the experiment: that of the moving
    average, as published. s has a distribution of its own, z_s the data and noise of z. Samples
    with r = t have the second term only.

    Differences from the authors' code: errors are summed over a sample's axes, not averaged; (r, t)
    are the experiment's times, not r and a gap; the moving average is the experiment's, not another
    one of decay 0.99; guidance is the experiment's, without 1 / scale^2 as a sample's weight.
    """

    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Weight of each sample by its own error, the sum of both terms."""
    stop_derivative: bool = False
    """Take du/dr as a constant, without a graph; as published, the gradient passes through it."""
    boundary: BoundaryTime | None = field(default_factory=BoundaryTime)
    """The time s of the flow-matching term; without it s is t, as a guided velocity needs."""

    learns_velocity: ClassVar[bool] = True
    mixes_tangent: ClassVar[bool] = False
    has_landscape: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    probes: ClassVar[int] = 0

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
    ) -> LossTerms:
        """See ``ObjectiveRule``; ``anchor_uniform`` is what s is a quantile of.

        ``beta`` is not used. ``velocity`` must be that at time s.
        """
        n = draws.n_equal
        error = self._boundary_error(u, draws, anchor_uniform, velocity, cond_weight)
        correction = torch.zeros_like(error).detach()
        if n < len(error):
            terminal, moved = self._terminal(u, draws, v_hat)
            error = torch.cat([error[:n], error[n:] + terminal])
            correction = torch.cat([correction[:n], moved])
        loss = (self.weight(error) * error).mean()
        return LossTerms(loss, error.detach(), correction, n)

    def _boundary_error(
        self,
        u: AverageVelocity,
        draws: Draws,
        uniform: Time | None,
        velocity: Sample | None,
        cond_weight: Scalars | None,
    ) -> Scalars:
        """|u(z_s, s, s) - v_cond|^2 of each sample."""
        s = draws.t
        if self.boundary is not None:
            if uniform is None:
                raise ValueError("a boundary time needs anchor_uniform")
            s = self.boundary(uniform)
        z, v_cond = interpolate(draws.x, draws.e, s)
        value, target = u(z, s, s), v_cond if velocity is None else velocity
        if cond_weight is not None:
            target = target + expand_like(cond_weight, z) * value.detach()
        return squared_norm(value - target)

    def _terminal(
        self, u: AverageVelocity, draws: Draws, v_hat: Velocity
    ) -> tuple[Scalars, Scalars]:
        """The first term and |(t - r) du/dr|^2 of the samples behind those with r = t."""
        x, e, r, t = (part[draws.n_equal :] for part in draws[:4])
        z, _ = interpolate(x, e, t)
        gap = expand_like(t - r, z)
        value, du_dr = self._derivative(u, z, r, t)
        with torch.no_grad():
            v = v_hat(z - gap * value, r)
        error = squared_norm(value - gap * du_dr - v)
        # A distribution of times may have r = t here too.
        return (r < t) * error, squared_norm((gap * du_dr).detach())

    def _derivative(self, u: AverageVelocity, z: Sample, r: Time, t: Time) -> tuple[Sample, Sample]:
        """u and du/dr; without a graph of the latter, if it is stopped."""
        if in_dual_mode() and not self.stop_derivative:
            raise ValueError("duals have no graph of du/dr; got stop_derivative false")
        if in_dual_mode() or not self.stop_derivative:
            return terminal_derivative(u, z, r, t)
        with torch.no_grad():
            _, du_dr = terminal_derivative(u, z, r, t)
        return u(z, r, t), du_dr
