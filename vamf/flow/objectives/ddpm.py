"""Denoising diffusion probabilistic models: the baseline (Ho et al., arXiv 2006.11239).

The network predicts the noise. Both of its times are t = (k + 1) / levels for the noise level
k = 0, ..., levels - 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vamf.flow.objectives.terms import AdaptiveWeight, Draws, LossTerms, squared_norm
from vamf.typing import AverageVelocity, Sample, Time, Velocity, expand_like


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """L_simple (equation 14): the mean squared error of the predicted noise, per dimension."""

    levels: int = 1000
    """Noise levels, at least 2."""
    first: float = 1e-4
    """Variance that the first level adds."""
    last: float = 0.02
    """Variance that the last one adds; it is linear between."""
    variance: Literal["large", "small"] = "large"
    """Of an ancestral step: what the level adds (large), or what is left of it given the data
    (small). Both are fixed."""
    clip: bool = True
    """Keep predicted data in [-1, 1] while sampling, as for images."""

    weight: ClassVar[AdaptiveWeight] = AdaptiveWeight()
    learns_velocity: ClassVar[bool] = False
    mixes_tangent: ClassVar[bool] = False
    has_landscape: ClassVar[bool] = False
    probes: ClassVar[int] = 0
    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"a DDPM needs at least 2 levels; got {self.levels}")
        if not 0 < self.first <= self.last < 1:
            raise ValueError(
                f"variances must rise, 0 < first <= last < 1; got {self.first}, {self.last}"
            )

    def added(self, device: torch.device | None = None) -> Tensor:
        """The variance that each level adds, (levels,) float64: Ho et al.'s beta_t."""
        return torch.linspace(
            self.first, self.last, self.levels, dtype=torch.float64, device=device
        )

    def kept(self, device: torch.device | None = None) -> Tensor:
        """The share of the data's variance that is left at each level, (levels,) float64."""
        return (1 - self.added(device)).cumprod(0)

    def level(self, t: Time) -> Tensor:
        """The level of times in [0, 1], (batch,) integers; uniform times give uniform levels."""
        return (t * self.levels).long().clamp(0, self.levels - 1)

    def time(self, level: Tensor) -> Tensor:
        """The time t = (level + 1) / levels that the network takes for a level."""
        return (level + 1) / self.levels

    def noised(self, x: Sample, e: Sample, level: Tensor) -> Sample:
        """sqrt(a) x + sqrt(1 - a) e, with a the share that is kept (equation 4)."""
        kept = self.kept(x.device)[level]  # made there: a copy would wait for the device
        signal, noise = (expand_like(share.sqrt().to(x.dtype), x) for share in (kept, 1 - kept))
        return signal * x + noise * e

    def __call__(self, u: AverageVelocity, draws: Draws, **_: Any) -> LossTerms:
        """See ``ObjectiveRule``: the loss at the levels of the times t; nothing else is used."""
        level = self.level(draws.t)
        t = self.time(level).to(draws.t.dtype)
        error = squared_norm(u(self.noised(draws.x, draws.e, level), t, t) - draws.e)
        nothing = torch.zeros_like(error)
        return LossTerms(error.mean() / draws.e[0].numel(), error.detach(), nothing, len(error))

    def ancestral(self, eps: Velocity, e: Sample, fresh: Callable[[], Sample]) -> Sample:
        """Samples from noise ``e`` by all levels in turn (algorithm 2).

        ``eps(z, t)`` predicts the noise, ``fresh()`` gives standard normal noise like ``e``, once
        for every level but the last.
        """
        z, added, kept = e, self.added().tolist(), self.kept().tolist()
        for k in reversed(range(self.levels)):
            x = self._data(eps, z, k, kept[k])
            before = kept[k - 1] if k else 1.0
            left = (1 - before) / (1 - kept[k])
            posterior = added[k] * left
            z = (before**0.5 * added[k] * x + (1 - added[k]) ** 0.5 * (1 - before) * z) / (
                1 - kept[k]
            )
            if k:
                variance = added[k] if self.variance == "large" else posterior
                z = z + variance**0.5 * fresh()
        return z

    def ddim(self, eps: Velocity, e: Sample, steps: int) -> Sample:
        """Samples from noise ``e`` without more of it (Song et al., arXiv 2010.02502, equation 12).

        ``steps`` levels, evenly spread, the last one among them. ValueError for fewer than one or
        more than there are levels.
        """
        if not 1 <= steps <= self.levels:
            raise ValueError(f"DDIM takes 1 to {self.levels} steps; got {steps}")
        z, kept = e, self.kept().tolist()
        for k, following in pairwise(self._spread(steps)):
            x = self._data(eps, z, k, kept[k])
            noise = (z - kept[k] ** 0.5 * x) / (1 - kept[k]) ** 0.5
            after = kept[following] if following >= 0 else 1.0
            z = after**0.5 * x + (1 - after) ** 0.5 * noise
        return z

    def _spread(self, steps: int) -> Iterator[int]:
        """Levels from the last one down to -1, which is the data."""
        return (-1 + self.levels * (steps - i) // steps for i in range(steps + 1))

    def _data(self, eps: Velocity, z: Sample, k: int, kept: float) -> Sample:
        """The data that the predicted noise implies."""
        t = torch.full((len(z),), (k + 1) / self.levels, device=z.device, dtype=z.dtype)
        x = (z - (1 - kept) ** 0.5 * eps(z, t)) / kept**0.5
        return x.clamp(-1, 1) if self.clip else x
