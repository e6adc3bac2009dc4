"""The Mean Flow objective with a mixed tangent, and the terms that go with it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vamf.flow.alpha import AlphaSchedule, secant_correction
from vamf.flow.derivatives import total_derivative
from vamf.flow.duals import are_carried
from vamf.flow.path import interpolate
from vamf.flow.tangents import mix_tangent
from vamf.flow.trace import TraceWeight
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

    def parts(self, size: int) -> Iterator["Draws"]:
        """The batch in order, in parts of at most ``size`` samples."""
        for start in range(0, len(self.x), size):
            x, e, r, t = (a[start : start + size] for a in self[:4])
            yield Draws(x, e, r, t, min(max(self.n_equal - start, 0), size))


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

    def __call__(
        self, u: AverageVelocity, draws: Draws, uniform: Time, velocity: Sample | None = None
    ) -> Scalars:
        """The anchor's loss of each sample, (batch,); ``uniform`` is (batch,) in [0, 1].

        ``velocity`` takes the place of v_cond, if given.
        """
        z, v_cond = _path(draws, velocity)
        gap = self.min_gap + (self.max_gap - self.min_gap) * uniform
        return self.weight * squared_norm(u(z, (draws.t - gap).clamp_min(0), draws.t) - v_cond)


def squared_norm(residual: Sample) -> Scalars:
    """|a|^2 of each sample, summed over all data axes."""
    return residual.square().flatten(1).sum(1)


def _path(draws: Draws, velocity: Sample | None) -> tuple[Sample, Sample]:
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    return z, v_cond if velocity is None else velocity


def path_derivative(
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    velocity: Sample | None = None,
) -> tuple[Sample, Sample, Sample]:
    """Returns z, v_cond and sg[(t - r) du/dt] with the mixed tangent, all (batch, ...).

    The last is 0 where r = t, without ever entering the jvp, so that a derivative that is not
    finite there does no harm. No graph is kept. ``velocity``, if given, is what v_cond is.
    """
    z, v_cond = _path(draws, velocity)
    n, r, t = draws.n_equal, draws.r[draws.n_equal :], draws.t[draws.n_equal :]
    if n == len(z):
        return z, v_cond, torch.zeros_like(z)
    with torch.no_grad():
        _, du_dt = total_derivative(u, z[n:], r, t, _tangent(draws, z, v_cond, beta, v_hat))
        correction = expand_like(t - r, z) * du_dt
    return z, v_cond, torch.cat([torch.zeros_like(z[:n]), correction])


def path_pass(
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    velocity: Sample | None = None,
) -> tuple[Sample, Sample, Sample, Sample]:
    """As ``path_derivative``, and u(z, r, t) with its graph, from one pass of the network.

    Where duals are carried: ``torch.func.jvp`` would keep the graph of du/dt, too.
    """
    z, v_cond = _path(draws, velocity)
    n, (r, t) = draws.n_equal, (draws.r, draws.t)
    if n == len(z):
        return z, v_cond, torch.zeros_like(z), u(z, r, t)
    with torch.no_grad():
        v_tan = _tangent(draws, z, v_cond, beta, v_hat)
    value, du_dt = total_derivative(u, z, r, t, v_tan)
    correction = expand_like(t[n:] - r[n:], z) * du_dt
    return z, v_cond, torch.cat([torch.zeros_like(z[:n]), correction]), value


def path_difference(
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    alpha: float,
    velocity: Sample | None = None,
) -> tuple[Sample, Sample, Sample, Sample]:
    """Returns z, v_cond, sg[(1 - alpha) (t - r) du/dt] and u(z, r, t), with its graph.

    As ``path_derivative``, with a difference of u for du/dt; 0 where r = t as well.
    """
    z, v_cond = _path(draws, velocity)
    value, n = u(z, draws.r, draws.t), draws.n_equal
    if n == len(z) or alpha == 1:
        return z, v_cond, torch.zeros_like(z), value
    with torch.no_grad():
        v_tan = _tangent(draws, z, v_cond, beta, v_hat)
        parts = (value[n:], z[n:], draws.r[n:], draws.t[n:], v_tan)
        correction = secant_correction(u, *parts, alpha)
    return z, v_cond, torch.cat([torch.zeros_like(z[:n]), correction]), value


def _tangent(draws: Draws, z: Sample, v_cond: Sample, beta: Beta, v_hat: Velocity) -> Sample:
    """v_tan where r < t."""
    n = draws.n_equal
    mine = beta[n:] if isinstance(beta, torch.Tensor) else beta
    return mix_tangent(v_cond[n:], z[n:], draws.t[n:], mine, v_hat)


class LossTerms(NamedTuple):
    """The loss and what is worth watching of it, as tensors without synchronisation."""

    loss: Tensor
    """Mean over the batch of the weighted loss, with the anchor: differentiate this."""
    squared_error: Scalars
    """|u - target|^2 of each sample, unweighted, summed over its axes, detached."""
    squared_correction: Scalars
    """|(t - r) du/dt|^2 of each sample, summed over its axes; 0 where r = t."""
    n_equal: int
    """The first ``n_equal`` samples have r = t."""


@dataclass(frozen=True, kw_only=True)
class MeanFlowLoss:
    """|u(z, r, t) - sg[v_cond - (t - r) du/dt]|^2 along the tangent (v_tan, 0, 1).

    The regression target keeps the unbiased v_cond at every beta; only the jvp's tangent is mixed
    (arXiv 2605.09235). beta = 0 is MeanFlow (arXiv 2505.13447, section 4.1); beta = 1 with the
    network's own boundary velocity is the tangent of improved Mean Flows (arXiv 2512.02012).

    alpha-Flow (arXiv 2510.20771) is |u - sg[alpha v_cond + (1 - alpha) u(z_s, r, s)]|^2 / alpha,
    s = alpha r + (1 - alpha) t and z_s = z - (t - s) v_tan. Its gradient is that of the loss above
    with (1 - alpha) times a difference quotient for du/dt, exactly; so it is computed, weighed and
    reported, for its own value goes to 0 with alpha. The way to z_s takes the mixed tangent, so
    that its limit is this loss at every beta; what is regressed on stays v_cond.
    """

    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Weight of each sample by its own error."""
    trace: TraceWeight | None = None
    """A further factor of each sample's weight, small where its noise is amplified."""
    anchor: Anchor | None = None
    """Ties u near r = t to the velocity; needed when beta is near 1 for long."""
    alpha: AlphaSchedule | None = None
    """alpha-Flow: while it is positive, du/dt is a difference quotient."""

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
        own: Scalars | None = None,
    ) -> LossTerms:
        """``anchor_uniform`` is (batch,) in [0, 1], ``signs`` the trace's (probes, batch, ...).

        ``progress`` in [0, 1] is what alpha depends on. ``velocity``, such as a guided one, takes
        the place of v_cond in the target, in the tangent and in the anchor. ``own`` is the weight,
        0 where r < t, of sg[u(z, t, t)] that is added to it.
        """
        alpha = self._alpha(progress)
        if alpha:
            z, v_cond, correction, value = path_difference(u, draws, beta, v_hat, alpha, velocity)
        elif are_carried():
            z, v_cond, correction, value = path_pass(u, draws, beta, v_hat, velocity)
        else:
            z, v_cond, correction = path_derivative(u, draws, beta, v_hat, velocity)
            value = u(z, draws.r, draws.t)
        if own is not None:
            v_cond = v_cond + expand_like(own, z) * value.detach()
        error = squared_norm(value - (v_cond - correction))
        extra = self._anchor(u, draws, anchor_uniform, v_cond)
        weighted = self.weight(error) * error
        if self.trace is not None:
            trace = self.trace.trace(u, z, draws.r, draws.t, draws.n_equal, signs)
            weighted = self.trace(trace, draws.t) * weighted
        loss = weighted.mean() if extra is None else weighted.mean() + extra
        return LossTerms(loss, error.detach(), squared_norm(correction), draws.n_equal)

    def _alpha(self, progress: float | None) -> float:
        if self.alpha is None:
            return 0.0
        if progress is None:
            raise ValueError("a loss with an alpha needs progress")
        return self.alpha(progress)

    def _anchor(
        self, u: AverageVelocity, draws: Draws, uniform: Time | None, velocity: Sample
    ) -> Tensor | None:
        if self.anchor is None:
            return None
        if uniform is None:
            raise ValueError("a loss with an anchor needs anchor_uniform")
        return self.anchor(u, draws, uniform, velocity).mean()
