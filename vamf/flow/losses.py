"""The Mean Flow objective with a mixed tangent, and the terms that go with it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vamf.flow.derivatives import total_derivative
from vamf.flow.path import interpolate
from vamf.flow.tangents import mix_tangent
from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity, expand_like


class Draws(NamedTuple):
    """What a step draws at random; the formulas below are deterministic given it."""

    x: Sample
    """Data."""
    e: Sample
    """Standard normal noise, of the shape of ``x``."""
    r: Time
    """The earlier time."""
    t: Time
    """The later time, r <= t."""
    n_equal: int = 0
    """The first ``n_equal`` samples have r = t and need no derivative."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeight:
    """w = 1 / sg[l + c]^p for a sample's squared error l (arXiv 2505.13447, section 4.3)."""

    p: float = 0.0
    """Power: 0 is the plain squared error, 1 makes every sample's loss about 1, .5 pseudo-Huber."""
    c: float = 0.01
    """Added to the squared error, positive."""

    def __post_init__(self) -> None:
        if not (self.p >= 0 and self.c > 0):
            raise ValueError(f"the adaptive weight needs p >= 0 and c > 0; got {self.p}, {self.c}")

    def __call__(self, squared_error: Scalars) -> Scalars:
        if self.p == 0:
            return torch.ones_like(squared_error)
        return (squared_error.detach() + self.c).pow(-self.p)


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The flow-matching anchor weight * E|u(z, t - gap, t) - v_cond|^2 (arXiv 2605.09235).

    ``gap`` is uniform on [min_gap, max_gap]; t - gap is kept at or above 0. The squared error is
    summed over a sample and never adaptively weighted.
    """

    weight: float = 0.1
    """Factor of the anchor in the loss, positive."""
    min_gap: float = 0.0
    """Smallest t - r."""
    max_gap: float = 1e-3
    """Largest t - r, at most 1."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the anchor's weight must be positive; got {self.weight}")
        if not 0 <= self.min_gap <= self.max_gap <= 1:
            raise ValueError(
                f"the anchor needs 0 <= min_gap <= max_gap <= 1; got {self.min_gap}, {self.max_gap}"
            )

    def __call__(self, u: AverageVelocity, draws: Draws, uniform: Time) -> Scalars:
        """The anchor's loss of each sample, (batch,); ``uniform`` is (batch,) in [0, 1]."""
        z, v_cond = interpolate(draws.x, draws.e, draws.t)
        gap = self.min_gap + (self.max_gap - self.min_gap) * uniform
        return self.weight * squared_norm(u(z, (draws.t - gap).clamp_min(0), draws.t) - v_cond)


def squared_norm(residual: Sample) -> Scalars:
    """|a|^2 of each sample, summed over all data axes."""
    return residual.square().flatten(1).sum(1)


def path_derivative(
    u: AverageVelocity, draws: Draws, beta: Beta, v_hat: Velocity
) -> tuple[Sample, Sample, Sample]:
    """Returns z, v_cond and sg[(t - r) du/dt] with the mixed tangent, all (batch, ...).

    The last is 0 where r = t, without ever entering the jvp, so that a derivative that is not
    finite there does no harm. No graph is kept.
    """
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    n, r, t = draws.n_equal, draws.r[draws.n_equal :], draws.t[draws.n_equal :]
    if n == len(z):
        return z, v_cond, torch.zeros_like(z)
    with torch.no_grad():
        mine = beta[n:] if isinstance(beta, torch.Tensor) else beta
        v_tan = mix_tangent(v_cond[n:], z[n:], t, mine, v_hat)
        _, du_dt = total_derivative(u, z[n:], r, t, v_tan)
        correction = expand_like(t - r, z) * du_dt
    return z, v_cond, torch.cat([torch.zeros_like(z[:n]), correction])


class LossTerms(NamedTuple):
    """The loss and what is worth watching of it, as tensors without synchronisation."""

    loss: Tensor
    """Mean over the batch of the weighted loss, with the anchor: differentiate this."""
    squared_error: Scalars
    """|u - target|^2 of each sample, unweighted, summed over its axes, detached."""


@dataclass(frozen=True, kw_only=True)
class MeanFlowLoss:
    """|u(z, r, t) - sg[v_cond - (t - r) du/dt]|^2 along the tangent (v_tan, 0, 1).

    The regression target keeps the unbiased v_cond at every beta; only the jvp's tangent is mixed
    (arXiv 2605.09235). beta = 0 is MeanFlow (arXiv 2505.13447, section 4.1); beta = 1 with the
    network's own boundary velocity is the tangent of improved Mean Flows (arXiv 2512.02012).
    """

    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Weight of each sample by its own error."""
    anchor: Anchor | None = None
    """Ties u near r = t to the velocity; needed when beta is near 1 for long."""

    def __call__(
        self,
        u: AverageVelocity,
        draws: Draws,
        *,
        beta: Beta,
        v_hat: Velocity,
        anchor_uniform: Time | None = None,
    ) -> LossTerms:
        z, v_cond, correction = path_derivative(u, draws, beta, v_hat)
        target = v_cond - correction
        error = squared_norm(u(z, draws.r, draws.t) - target)
        loss = (self.weight(error) * error).mean()
        if self.anchor is not None:
            if anchor_uniform is None:
                raise ValueError("a loss with an anchor needs anchor_uniform")
            loss = loss + self.anchor(u, draws, anchor_uniform).mean()
        return LossTerms(loss, error.detach())
