"""Distributions of the pair of times (r, t) with r <= t (arXiv 2505.13447, section 4.3)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from vamf.typing import Time


class TimeDistribution(Protocol):
    """Draws pairs of times; ``draw_times`` then sets r = t for a share ``prob_equal`` of them."""

    @property
    def prob_equal(self) -> float: ...

    def __call__(self, n: int, generator: Generator) -> tuple[Time, Time]:
        """Returns (r, t), each (n,), with r <= t, before the share with r = t is set."""
        ...


def _check_share(prob_equal: float) -> None:
    if not 0 <= prob_equal <= 1:
        raise ValueError(f"prob_equal must lie in [0, 1]; got {prob_equal}")


def _ordered(pair: Tensor, max_gap: float) -> tuple[Time, Time]:
    r, t = pair.amin(0), pair.amax(0)
    return torch.maximum(r, t - max_gap), t


@dataclass(frozen=True, kw_only=True)
class UniformTimes:
    """Both times uniform on (0, 1), sorted."""

    prob_equal: float = 0.25
    """P(r = t): the share of samples that learn the instantaneous velocity."""
    max_gap: float = 1.0
    """Largest t - r; larger gaps are cut by moving r up."""
    margin: float = 1e-4
    """Times keep this distance from 0 and 1."""

    def __post_init__(self) -> None:
        _check_share(self.prob_equal)
        if not 0 < self.max_gap <= 1:
            raise ValueError(f"max_gap must lie in (0, 1]; got {self.max_gap}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"margin must lie in [0, 0.5); got {self.margin}")

    def __call__(self, n: int, generator: Generator) -> tuple[Time, Time]:
        pair = torch.rand(2, n, generator=generator, device=generator.device)
        return _ordered(self.margin + (1 - 2 * self.margin) * pair, self.max_gap)


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes:
    """Both times sigmoid(mean + std N(0, 1)), sorted (arXiv 2505.13447, section 4.3)."""

    prob_equal: float = 0.75
    """P(r = t): the share of samples that learn the instantaneous velocity."""
    mean: float = -0.4
    """Mean of the normal variable; negative favours times near the data."""
    std: float = 1.0
    """Standard deviation of the normal variable."""

    def __post_init__(self) -> None:
        _check_share(self.prob_equal)
        if not self.std > 0:
            raise ValueError(f"std must be positive; got {self.std}")

    def __call__(self, n: int, generator: Generator) -> tuple[Time, Time]:
        normal = torch.randn(2, n, generator=generator, device=generator.device)
        return _ordered(torch.sigmoid(self.mean + self.std * normal), max_gap=1.0)


@dataclass(frozen=True, kw_only=True)
class ClippedLogitNormalTimes:
    """t and r logit-normal, each with its own parameters, then r clipped to at most t.

    The defaults are those of the Mean Flows authors for CIFAR-10 (`cifar10_v1` of their PyTorch
    code). Clipping gives r = t for 6.65 % of the pairs, in addition to ``prob_equal``.
    """

    prob_equal: float = 0.25
    """P(r = t), before clipping."""
    t_mean: float = -0.6
    """Mean of the normal variable of t."""
    t_std: float = 1.6
    """Standard deviation of the normal variable of t."""
    r_mean: float = -4.0
    """Mean of the normal variable of r."""
    r_std: float = 1.6
    """Standard deviation of the normal variable of r."""

    def __post_init__(self) -> None:
        _check_share(self.prob_equal)
        if not (self.t_std > 0 and self.r_std > 0):
            raise ValueError(f"t_std and r_std must be positive; got {self.t_std}, {self.r_std}")

    def __call__(self, n: int, generator: Generator) -> tuple[Time, Time]:
        normal = torch.randn(2, n, generator=generator, device=generator.device)
        t = torch.sigmoid(self.t_mean + self.t_std * normal[0])
        r = torch.sigmoid(self.r_mean + self.r_std * normal[1])
        return torch.minimum(r, t), t


def count_equal(prob_equal: float, n: int, generator: Generator) -> int:
    """Draws how many of ``n`` samples have r = t: ``prob_equal * n``, rounded at random.

    The host knows the count before the step, so that those samples can be left out of the jvp
    without a mask. Its mean is exactly ``prob_equal * n``.
    """
    exact = prob_equal * n
    base = int(exact)
    if exact == base:
        return base
    uniform = torch.rand((), generator=generator, device=generator.device)
    return base + int(uniform.item() < exact - base)


def draw_times(
    times: TimeDistribution, n: int, n_equal: int, generator: Generator
) -> tuple[Time, Time]:
    """Draws (r, t), each (n,); the first ``n_equal`` pairs have r = t."""
    r, t = times(n, generator)
    return torch.cat([t[:n_equal], r[n_equal:]]), t
