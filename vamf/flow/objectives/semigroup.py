"""Semigroup consistency: one step is two, without a jvp (SplitMeanFlow, arXiv 2507.16884)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vamf.flow.objectives.meanflow import path_point
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, LossTerms, squared_norm
from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity, expand_like


def two_steps(u: AverageVelocity, z: Sample, r: Time, t: Time, share: Time) -> Sample:
    """The average velocity over [r, t] of a step from t to m, then one from m to r, (batch, ...).

    With m = t - share (t - r) and ``share`` (batch,) in [0, 1] it is share u(z, m, t) + (1 - share)
    u(z - (t - m) u(z, m, t), r, m): both steps over t - r, without dividing by it.
    """
    m = torch.lerp(t, r, share)  # exact at both ends
    first = u(z, m, t)
    second = u(z - expand_like(t - m, z) * first, r, m)
    return torch.lerp(second, first, expand_like(share, z).to(z.dtype))


@dataclass(frozen=True, kw_only=True)
class SemigroupLoss:
    """|u - sg[((t - m) u(z, m, t) + (m - r) u(z - (t - m) u(z, m, t), r, m)) / (t - r)]|^2.

    Interval splitting consistency, r < m < t (arXiv 2507.16884); shortcut models (arXiv 2410.12557)
    have the same identity, and arXiv 2505.18825 calls it PSD-U with m uniform and PSD-M with m in
    the middle. Where r = t the target is v_cond: flow matching, the only place where data enter, so
    ``times.prob_equal`` must be positive. There is no jvp, hence no beta: bias alone.
    """

    weight: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Weight of each sample by its own error."""
    split: Literal["uniform", "middle"] = "uniform"
    """Where m lies between r and t: drawn uniformly for each sample, or in the middle."""

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
        """See ``ObjectiveRule``; ``anchor_uniform`` is (t - m) / (t - r) of a uniform split.

        ``beta`` and ``v_hat`` are not used, ``velocity`` where r = t.
        """
        z, target = path_point(draws, velocity)
        value, n = u(z, draws.r, draws.t), draws.n_equal
        if cond_weight is not None:
            target = target + expand_like(cond_weight, z) * value.detach()
        if n < len(z):
            r, t, share = draws.r[n:], draws.t[n:], self._share(draws.t, anchor_uniform)[n:]
            with torch.no_grad():
                composed = two_steps(u, z[n:], r, t, share)
            # A distribution of times may have r = t in the other samples too.
            interior = torch.where(expand_like(r < t, z), composed, target[n:])
            target = torch.cat([target[:n], interior])
        error = squared_norm(value - target)
        loss = (self.weight(error) * error).mean()
        return LossTerms(loss, error.detach(), torch.zeros_like(error).detach(), n)

    def _share(self, t: Time, uniform: Time | None) -> Time:
        """(t - m) / (t - r) of each sample."""
        if self.split == "middle":
            return torch.full_like(t, 0.5)
        if uniform is None:
            raise ValueError("a uniform split needs anchor_uniform")
        return uniform
