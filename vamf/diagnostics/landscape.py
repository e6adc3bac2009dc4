"""The beta landscape: loss, variance, bias and gradient error at every beta, from one set of draws.

The residual is affine in beta, a + beta D (arXiv 2605.09235). Hence the loss is quadratic and its
variance quartic in beta, the gradient is g0 + beta gD, and the trace of its covariance and its
squared bias are quadratic. The coefficients are measured once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

CurveName = Literal[
    "loss/mean",
    "loss/variance",
    "gradient/trace",
    "gradient/bias2",
    "gradient/mse",
    "conditional/trace",
    "conditional/bias2",
    "conditional/mse",
]
"""``gradient/...`` describes the mean gradient of a batch, over new (x, e, r, t): trace of its
covariance, squared bias against the exact velocity as tangent, and their sum M(beta).
``conditional/...`` describes one sample's gradient given (z, r, t), averaged over these: M(beta) of
arXiv 2605.09235. ``loss/...`` describes one sample's loss, per dimension."""

CURVES: tuple[CurveName, ...] = get_args(CurveName)
FAMILIES = 3
"""Gradients stored for each bin: at beta = 0, of D, and of D without its noise (A b)."""


class Estimate(NamedTuple):
    """A value and its jackknife standard error over pairs of batches."""

    value: float
    error: float


@dataclass(frozen=True)
class ProbeMoments:
    """A probe's measurements: averages over each pair of batches, (pairs, ...), in J bins of t."""

    count: Tensor
    """(pairs, J): share of the samples in each bin."""
    first: Tensor
    """(pairs, J, 3): mean over the batch of |a|^2, 2 <a, D>, |D|^2, in the bin, over d."""
    second: Tensor
    """(pairs, J, 3, 3): the same of their products."""
    covariance: Tensor
    """(pairs, 3 J, 3 J): half the Gram matrix of the two batches' differences of gradients."""
    crossed: Tensor
    """(pairs, 3 J, 3 J): symmetrised products of one batch's gradients with the other's."""
    conditional: Tensor
    """(pairs, J, 3, 3): mean over samples of <g x, g y>; x, y of J v', A v', A b; NaN unknown."""
    scalars: Tensor
    """(pairs, 8): means of the output-space quantities in ``SCALARS``."""

    @classmethod
    def zeros(cls, pairs: int, bins: int, device: torch.device) -> Self:
        """Tables of zeros."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(pairs, *shape, dtype=torch.float64, device=device)

        wide = FAMILIES * bins
        return cls(
            zeros(bins),
            zeros(bins, 3),
            zeros(bins, 3, 3),
            zeros(wide, wide),
            zeros(wide, wide),
            zeros(bins, 3, 3),
            zeros(len(SCALARS)),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The tables with ``function`` applied to each."""
        return type(self)(*(function(getattr(self, field.name)) for field in fields(self)))


SCALARS = (
    "interior",  # share of samples with r < t
    "kappa",  # <e, A e> / d for a random direction e, over r < t
    "sigma2",  # |v'|^2, v' = v_cond - v
    "bias2",  # |v_hat - v|^2
    "noise_response",  # <J v', D>
    "response2",  # |D|^2
    "own_product",  # <v', A v'> with v' = v_cond - u(z, t, t)
    "own_response2",  # |A v'|^2 of the same
)


@dataclass(frozen=True)
class Landscape:
    """The measured curves over beta in [0, 1]."""

    tables: ProbeMoments
    edges: tuple[float, ...]
    """Edges of the bins of t, ascending: J + 1 of them."""
    batch: int
    """Samples in a batch."""
    knows_velocity: bool
    """Whether the exact velocity was known: without it there are no conditional curves."""

    @property
    def bins(self) -> int:
        """The number of bins of t."""
        return len(self.edges) - 1

    @property
    def names(self) -> tuple[CurveName, ...]:
        """The curves that were measured."""
        return tuple(n for n in CURVES if self.knows_velocity or not n.startswith("conditional"))

    def curve(
        self, name: CurveName, betas: Tensor, bin: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """A curve's values at ``betas``, (n,), and their standard errors, of one bin or of all.

        A bin's gradient is its part of the batch's gradient: values of bins add up to that of the
        batch, except for the covariances between them.
        """
        powers = torch.stack([betas.double() ** k for k in range(5)])
        values, without = self._jackknife(
            lambda mean: coefficients(name, mean, bin) @ powers.to(mean.count)
        )
        return values, _spread(without)

    def minimiser(self, name: CurveName, bin: int | None = None) -> Estimate:
        """The beta in [0, 1] at which a curve is lowest.

        At 0 or 1 the true error is one-sided. A flat curve (no sample with r < t) gives NaN.
        """
        value, without = self._jackknife(lambda mean: _lowest(coefficients(name, mean, bin)))
        return Estimate(float(value), float(_spread(without)))

    def interval(self, name: CurveName, bin: int | None = None) -> tuple[float, float]:
        """A 95 % confidence interval of ``minimiser``, within [0, 1]: Student's t over pairs.

        NaN if the minimiser or its error is.
        """
        from scipy.stats import t as student

        value, error = self.minimiser(name, bin)
        reach = student.ppf(0.975, len(self.tables.count) - 1) * error
        if math.isnan(value) or math.isnan(reach):  # max and min would return [0, 1]
            return math.nan, math.nan
        return max(0.0, value - reach), min(1.0, value + reach)

    def estimates(self) -> dict[str, Estimate]:
        """beta* by each formula, to compare them."""
        names = [n for n in self.names if n.split("/")[1] in ("trace", "mse", "variance")]
        exact = {f"beta_star/{name}": self.minimiser(name) for name in names}
        formulas = ("no_bias", *(("scalar", "matrix") if self.knows_velocity else ()))
        for formula in formulas:
            value, without = self._jackknife(lambda mean, f=formula: _paper(mean)[f])  # type: ignore[misc]
            exact[f"beta_star/paper_{formula}"] = Estimate(float(value), float(_spread(without)))
        return exact | {f"probe/{k}": v for k, v in self._parts().items()}

    def _parts(self) -> dict[str, Estimate]:
        names = ("kappa", *(("sigma2", "bias2") if self.knows_velocity else ()))
        value, without = self._jackknife(lambda mean: torch.stack([_paper(mean)[n] for n in names]))
        pairs = zip(value.tolist(), _spread(without).tolist(), strict=True)
        return {name: Estimate(*pair) for name, pair in zip(names, pairs, strict=True)}

    def _jackknife(self, statistic: Callable[[ProbeMoments], Tensor]) -> tuple[Tensor, Tensor]:
        """A statistic of the averaged tables, and its values without each pair, (pairs, ...)."""
        n, means = len(self.tables.count), self.tables.map(lambda table: table.mean(0))
        without = [
            statistic(
                ProbeMoments(
                    *(
                        (getattr(means, f.name) * n - getattr(self.tables, f.name)[k]) / (n - 1)
                        for f in fields(ProbeMoments)
                    )
                )
            )
            for k in range(n)
        ]
        return statistic(means), torch.stack(without)


def coefficients(name: CurveName, mean: ProbeMoments, bin: int | None = None) -> Tensor:
    """The curve's polynomial in beta, lowest power first, (5,), from tables averaged over pairs."""
    group, what = name.split("/")
    if group == "loss":
        return _loss(what, mean, bin)
    if what == "mse":
        parts = [coefficients(f"{group}/{part}", mean, bin) for part in ("trace", "bias2")]  # type: ignore[arg-type]
        return parts[0] + parts[1]
    if group == "conditional":
        return _conditional(what, mean, bin)
    bins = range(len(mean.count)) if bin is None else [bin]
    total, start, step = len(mean.count), list(bins), [b + len(mean.count) for b in bins]
    if what == "bias2":
        true = [b + 2 * total for b in bins]
        return _polynomial(0, 0, mean.crossed[true][:, true].sum())
    c = mean.covariance
    return _polynomial(
        c[start][:, start].sum(), 2 * c[start][:, step].sum(), c[step][:, step].sum()
    )


def _loss(what: str, mean: ProbeMoments, bin: int | None) -> Tensor:
    share = mean.count.sum() if bin is None else mean.count[bin]
    first = (mean.first.sum(0) if bin is None else mean.first[bin]) / share
    if what == "mean":
        return _polynomial(*first)
    second = (mean.second.sum(0) if bin is None else mean.second[bin]) / share
    spread = second - first[:, None] * first
    # (1, beta, beta^2) spread (1, beta, beta^2)^T: anti-diagonals hold one power each.
    return torch.stack([spread.flip(1).diagonal(2 - power).sum() for power in range(5)])


def _conditional(what: str, mean: ProbeMoments, bin: int | None) -> Tensor:
    gram = mean.conditional.sum(0) if bin is None else mean.conditional[bin]
    if what == "bias2":
        return _polynomial(0, 0, gram[2, 2])
    return _polynomial(gram[0, 0], -2 * gram[0, 1], gram[1, 1])  # J v' - beta A v'


def _polynomial(*values: Tensor | float) -> Tensor:
    """Coefficients (5,), padded with zeros, on the device of the tensors among them."""
    device = next(v.device for v in values if isinstance(v, Tensor))
    padded = (*values, 0.0, 0.0)[:5]
    return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in padded])


def _lowest(polynomial: Tensor) -> Tensor:
    """Where a polynomial (5,) is lowest on [0, 1]; NaN if it is constant or not finite."""
    import numpy as np

    c = np.trim_zeros(polynomial.cpu().numpy(), "b")
    if len(c) < 2 or not np.isfinite(c).all():
        return torch.tensor(float("nan"), dtype=torch.float64)
    p = np.polynomial.Polynomial(c)
    roots = np.asarray(p.deriv().roots(), dtype=complex)
    inside = [x for x in roots.real[abs(roots.imag) < 1e-12].tolist() if 0 < x < 1]
    lowest = min([0.0, 1.0, *inside], key=lambda beta: float(p(beta)))
    return torch.tensor(lowest, dtype=torch.float64)


def _paper(mean: ProbeMoments) -> dict[str, Tensor]:
    """The estimates of arXiv 2605.09235: isotropic scalars, output-space matrices, no bias."""
    s = dict(zip(SCALARS, mean.scalars, strict=True))
    kappa = s["kappa"] / s["interior"] - 1  # J = A - I
    shrink = s["sigma2"] / (s["sigma2"] + s["bias2"])
    return {
        "kappa": kappa,
        "sigma2": s["sigma2"],
        "bias2": s["bias2"],
        "scalar": (kappa / (kappa + 1) * shrink).clamp(0, 1),
        "matrix": (-s["noise_response"] / s["response2"]).clamp(0, 1),
        "no_bias": (1 - s["own_product"] / s["own_response2"]).clamp(0, 1),
    }


def _spread(without: Tensor) -> Tensor:
    """The jackknife standard error from leave-one-out values, (pairs, ...)."""
    n = len(without)
    return ((n - 1) / n * (without - without.mean(0)).square().sum(0)).sqrt()
