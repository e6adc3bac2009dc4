"""The Mean Flow objective with a mixed tangent, and the terms that go with it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vamf.flow.derivatives import total_derivative
from vamf.flow.difference import Difference
from vamf.flow.duals import in_dual_mode
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, LossTerms, moved_to, squared_norm
from vamf.flow.path import interpolate
from vamf.flow.tangents import mix_tangent
from vamf.flow.trace import TraceWeight
from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity, expand_like


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
        z, v_cond = path_point(draws, velocity)
        gap = self.min_gap + (self.max_gap - self.min_gap) * uniform
        return self.weight * squared_norm(u(z, (draws.t - gap).clamp_min(0), draws.t) - v_cond)


def path_point(draws: Draws, velocity: Sample | None) -> tuple[Sample, Sample]:
    """Returns z and v_cond, or z and the ``velocity`` that is used in its place."""
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    return z, v_cond if velocity is None else velocity


def path_derivative(
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    velocity: Sample | None = None,
    difference: Difference | None = None,
) -> tuple[Sample, Sample, Sample]:
    """Returns z, v_cond and sg[(t - r) du/dt] with the mixed tangent, all (batch, ...).

    The last is 0 where r = t, without ever entering the jvp, so that a derivative that is not
    finite there does no harm. No graph is kept. ``velocity``, if given, is what v_cond is;
    ``difference`` takes the place of the jvp.
    """
    z, v_cond = path_point(draws, velocity)
    n, r, t = draws.n_equal, draws.r[draws.n_equal :], draws.t[draws.n_equal :]
    if n == len(z):
        return z, v_cond, torch.zeros_like(z)
    with torch.no_grad():
        along = (u, z[n:], r, t, moving_tangent(draws, z, v_cond, beta, v_hat))
        du_dt = difference(*along) if difference else total_derivative(*along)[1]
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
    z, v_cond = path_point(draws, velocity)
    n, (r, t) = draws.n_equal, (draws.r, draws.t)
    if n == len(z):
        return z, v_cond, torch.zeros_like(z), u(z, r, t)
    with torch.no_grad():
        v_tan = moving_tangent(draws, z, v_cond, beta, v_hat)
    value, du_dt = total_derivative(u, z, r, t, v_tan)
    correction = expand_like(t[n:] - r[n:], z) * du_dt
    return z, v_cond, torch.cat([torch.zeros_like(z[:n]), correction]), value


def moving_tangent(draws: Draws, z: Sample, v_cond: Sample, beta: Beta, v_hat: Velocity) -> Sample:
    """v_tan of the samples with r < t."""
    n = draws.n_equal
    mine = beta[n:] if isinstance(beta, torch.Tensor) else beta
    return mix_tangent(v_cond[n:], z[n:], draws.t[n:], mine, v_hat)


def evaluated_once(v_hat: Velocity, draws: Draws) -> Velocity:
    """The proxy at a step's z and t, evaluated for all samples, then known for the last of them."""
    z, _ = interpolate(draws.x, draws.e, draws.t)
    with torch.no_grad():
        known = v_hat(z, draws.t)
    return lambda z, t: known[len(known) - len(z) :]


def mean_flow_path(
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    velocity: Sample | None = None,
    difference: Difference | None = None,
) -> tuple[Sample, Sample, Sample, Sample]:
    """Returns z, v_cond, sg[(t - r) du/dt] and u(z, r, t) with its graph, all (batch, ...)."""
    if in_dual_mode() and difference is None:
        return path_pass(u, draws, beta, v_hat, velocity)
    z, v_cond, correction = path_derivative(u, draws, beta, v_hat, velocity, difference)
    return z, v_cond, correction, u(z, draws.r, draws.t)


@dataclass(frozen=True, kw_only=True)
class MeanFlowLoss:
    """|u(z, r, t) - sg[v_gamma - (t - r) du/dt]|^2 along the tangent (v_tan, 0, 1).

    With gamma = 0 the regression target keeps the unbiased v_cond at every beta; only the jvp's
    tangent is mixed (arXiv 2605.09235). beta = 0 is MeanFlow (arXiv 2505.13447, section 4.1); beta
    = 1 with the network's own boundary velocity is the tangent of improved Mean Flows (arXiv
    2512.02012). In general v_gamma = (1 - gamma) v_cond + gamma v_hat(z, t), also where r = t.
    beta = gamma = 1 with the proxy `reference`, a flow-matching run, distils that run (`use_cd` of
    NVIDIA's FastGen): there is no noise of v_cond, and the bias of the proxy.
    """

    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Weight of each sample by its own error."""
    trace: TraceWeight | None = None
    """A further factor of each sample's weight, small where its noise is amplified."""
    anchor: Anchor | None = None
    """Ties u near r = t to the velocity; needed when beta is near 1 for long."""
    gamma: float = 0.0
    """Weight of the proxy in the regression target and the anchor, in [0, 1]."""
    difference: Difference | None = None
    """A finite difference in place of the jvp, for networks without forward mode."""
    tangent_warmup: float = 0.0
    """Share of training in [0, 1] in which the factor of (t - r) du/dt rises from 0 to 1, linearly:
    the tangent warm-up of sCM (arXiv 2410.11081) and FastGen."""

    learns_velocity: ClassVar[bool] = True
    mixes_tangent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"loss.gamma must lie in [0, 1]; got {self.gamma}")
        if not 0 <= self.tangent_warmup <= 1:
            raise ValueError(f"loss.tangent_warmup must lie in [0, 1]; got {self.tangent_warmup}")
        if self.difference and self.trace:
            raise ValueError(
                "loss.trace needs the jvp of the network: it goes without loss.difference; "
                f"got {self.difference}"
            )

    @property
    def moves(self) -> bool:
        """Whether the derivative's factor rises at first."""
        return self.tangent_warmup > 0

    @property
    def has_landscape(self) -> bool:
        """Whether v_cond is the target, and the derivative that of the landscape."""
        return self.gamma == 0 and self.difference is None

    @property
    def probes(self) -> int:
        """Random signs of each sample that the trace weight needs."""
        return 0 if self.trace is None else self.trace.probes

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
        """See ``ObjectiveRule`` and ``Moving``: the factor of (t - r) du/dt moves in a warm-up."""
        if self.gamma:
            v_hat = evaluated_once(v_hat, draws)
        path = mean_flow_path(u, draws, beta, v_hat, velocity, self.difference)
        if self.tangent_warmup:
            z, v_cond, correction, value = path
            path = z, v_cond, moved_to(self, progress, moved) * correction, value
        return self.terms(u, draws, path, anchor_uniform, signs, cond_weight, v_hat)

    def moves_to(self, progress: float) -> float:
        """The factor of (t - r) du/dt at a progress of training."""
        return min(progress / self.tangent_warmup, 1.0)

    def stands_apart(self, moved: float) -> bool:
        """Whether the warm-up is over: the factor is then 1 for long."""
        return moved == 1

    def terms(
        self,
        u: AverageVelocity,
        draws: Draws,
        path: tuple[Sample, Sample, Sample, Sample],
        anchor_uniform: Time | None,
        signs: Tensor | None,
        cond_weight: Scalars | None,
        v_hat: Velocity,
    ) -> LossTerms:
        """The loss, given z, v_cond, sg[(t - r) du/dt] and u(z, r, t)."""
        z, v_cond, correction, value = path
        if cond_weight is not None:
            v_cond = v_cond + expand_like(cond_weight, z) * value.detach()
        v_cond = mix_tangent(v_cond, z, draws.t, self.gamma, v_hat)
        error = squared_norm(value - (v_cond - correction))
        extra = self._anchor(u, draws, anchor_uniform, v_cond)
        weighted = self.weight(error) * error
        if self.trace is not None:
            trace = self.trace.trace(u, z, draws.r, draws.t, draws.n_equal, signs)
            weighted = self.trace(trace, draws.t) * weighted
        loss = weighted.mean() if extra is None else weighted.mean() + extra
        return LossTerms(loss, error.detach(), squared_norm(correction), draws.n_equal)

    def _anchor(
        self, u: AverageVelocity, draws: Draws, uniform: Time | None, velocity: Sample
    ) -> Tensor | None:
        if self.anchor is None:
            return None
        if uniform is None:
            raise ValueError("a loss with an anchor needs anchor_uniform")
        return self.anchor(u, draws, uniform, velocity).mean()
