"""Estimates beta*(t) during training and trains with it: ``beta.kind=AdaptiveBeta``."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vamf.diagnostics.landscape import ProbeMoments
from vamf.diagnostics.probe import Probe
from vamf.typing import Scalars, Time

SWEEPS = 100
"""Rounds of coordinate descent: more than a few bins need to converge."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveBeta:
    """beta constant on each bin of t, at the minimum of the batch gradient's squared error M(beta).

    Every ``every`` steps the landscape is probed at the current weights. It is quadratic in the
    bins' betas; its coefficients are averaged over probes and it is minimised within bounds.
    """

    start: float = 0.0
    """beta in [0, 1] before the first estimate."""
    begin: int = 500
    """Steps before the first estimate: the proxy of an untrained network is not useful."""
    every: int = 500
    """Steps between estimates."""
    pairs: int = 4
    """Pairs of batches in an estimate, at least 2."""
    bins: int = 4
    """Equal bins of t in [0, 1]."""
    smoothing: float = 0.7
    """Weight in [0, 1) of earlier estimates in the average."""
    low: float = 0.0
    """Smallest beta."""
    high: float = 1.0
    """Largest beta."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.start <= self.high <= 1:
            raise ValueError(
                "an adaptive beta needs 0 <= low <= start <= high <= 1; "
                f"got {self.low}, {self.start} and {self.high}"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"beta.smoothing must lie in [0, 1); got {self.smoothing}")
        if self.begin < 0:
            raise ValueError(f"beta.begin must be at least 0; got {self.begin}")
        assert self.probe  # refuses too few pairs or bins

    @property
    def probe(self) -> Probe:
        """How an estimate is measured; samples have the weights of the loss."""
        return Probe(every=self.every, pairs=self.pairs, bins=self.bins, weighted=True)

    def due(self, step: int) -> bool:
        """Whether an estimate is made before the step, counted from 0."""
        return step >= self.begin and (step - self.begin) % self.every == 0

    @property
    def varies_over_training(self) -> bool:
        """True: each estimate changes beta."""
        return True

    @property
    def label(self) -> str:
        """The rule in a few characters: ``β adaptive, 4 bins``."""
        return f"β adaptive, {self.bins} bins"


class AdaptiveBetaState(NamedTuple):
    """The current estimate of beta*(t) as tensors, which checkpoints store."""

    betas: Tensor
    """(J,): beta in each bin."""
    linear: Tensor
    """(J,), float64: half the smoothed slope of M at beta = 0."""
    quadratic: Tensor
    """(J, J), float64: its smoothed curvature, bias included."""
    estimates: Tensor
    """(): the number of estimates in the average."""

    @classmethod
    def new(cls, rule: AdaptiveBeta, device: torch.device) -> Self:
        """The state before any estimate."""
        wide = torch.zeros(rule.bins, rule.bins, dtype=torch.float64, device=device)
        betas = torch.full((rule.bins,), rule.start, device=device)
        return cls(betas, wide[0], wide, torch.zeros((), dtype=torch.int64, device=device))

    def at(self, t: Time) -> Scalars:
        """beta of samples at times ``t``, (batch,)."""
        index = (t * len(self.betas)).long().clamp(max=len(self.betas) - 1)
        return self.betas[index].to(t.dtype)

    def updated(self, rule: AdaptiveBeta, tables: ProbeMoments) -> Self:
        """The state after another landscape.

        With C the covariance and N the bias products of the bins' gradients, M(beta) is
        beta^T (C_DD + N) beta + 2 c^T beta + const, c the sum of C_0D over the first index.
        """
        j, mean = rule.bins, tables.map(lambda table: table.mean(0))
        linear = mean.covariance[:j, j : 2 * j].sum(0)
        quadratic = mean.covariance[j : 2 * j, j : 2 * j] + mean.crossed[2 * j :, 2 * j :]
        # Weights of a bias-corrected exponential average: smoothing^n, ..., smoothing, 1.
        decay, n = rule.smoothing, int(self.estimates)
        keep = decay * (1 - decay**n) / (1 - decay ** (n + 1))
        linear = keep * self.linear + (1 - keep) * linear
        quadratic = keep * self.quadratic + (1 - keep) * quadratic
        betas = box_minimum(quadratic, linear, self.betas.double(), rule.low, rule.high)
        return type(self)(betas.to(self.betas), linear, quadratic, self.estimates + 1)


def box_minimum(
    quadratic: Tensor, linear: Tensor, start: Tensor, low: float, high: float
) -> Tensor:
    """Minimises x^T Q x + 2 c^T x over [low, high]^J by coordinate descent from ``start``.

    Coordinates without curvature, of bins without samples, keep their value.
    """
    x = start.clone()
    for _ in range(SWEEPS):
        for k in range(len(x)):
            curvature = quadratic[k, k]
            if curvature > 0:
                others = quadratic[k] @ x - curvature * x[k]
                x[k] = (-(linear[k] + others) / curvature).clamp(low, high)
    return x
