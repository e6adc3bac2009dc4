"""Gaussian processes through the trials of a search, averaged over their kernels' parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
"""Functions drawn from the posterior."""


class Kernel(NamedTuple):
    """A squared-exponential kernel with noise, for standardised values."""

    signal: float
    """The variance of the function."""
    length: float | np.ndarray
    """Length scales, one or (dimensions,), in units of the points' coordinates."""
    noise: float
    """The variance of the noise."""


class Curve(NamedTuple):
    """An objective at n points: the posterior of a Gaussian process."""

    mean: np.ndarray
    """(n,): the median, in the objective's units."""
    low: np.ndarray
    """(n,): lower end of its 95 % band: of the curve, not of another training."""
    high: np.ndarray
    """(n,): upper end."""


class Process:
    """The posterior of an objective, over kernels weighted by their marginal likelihood.

    The likeliest kernel alone is overconfident.
    """

    def __init__(
        self,
        x: np.ndarray,
        values: Sequence[float],
        share: np.ndarray,
        kernels: Sequence[Kernel],
    ) -> None:
        """``x`` are the trials' points, (trials, dimensions), ``values`` the objective there.

        ``share``, (trials,), is that of each trial in a kernel's noise. Positive values are fitted
        as logarithms.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor  # slow to import
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel

        y = np.asarray(values)
        self._logarithmic = bool((y > 0).all())
        y = np.log(y) if self._logarithmic else y
        self._centre, self._scale = y.mean(), y.std() or 1.0
        standard = (y - self._centre) / self._scale
        fits = [
            GaussianProcessRegressor(
                ConstantKernel(kernel.signal) * RBF(kernel.length),
                alpha=kernel.noise * share,
                optimizer=None,
            ).fit(x, standard)
            for kernel in kernels
        ]
        likelihoods = np.array([fit.log_marginal_likelihood_value_ for fit in fits])
        weights = np.exp(likelihoods - likelihoods.max())
        self._random = np.random.default_rng(0)
        counts = self._random.multinomial(DRAWS, weights / weights.sum())
        self._fits = [(fit, count) for fit, count in zip(fits, counts, strict=True) if count]

    def curve(self, at: np.ndarray) -> tuple[Curve, np.ndarray]:
        """The posterior at the points ``at``, (n, dimensions), and draws from it, (n, draws)."""
        drawn = []
        for fit, count in self._fits:
            mean, covariance = fit.predict(at, return_cov=True)
            normal = self._random.multivariate_normal(mean, covariance, count, method="eigh")
            drawn.append(normal.T)
        draws = self._in_units(np.concatenate(drawn, axis=1))
        low, mean, high = np.quantile(draws, [0.025, 0.5, 0.975], axis=1)
        return Curve(mean, low, high), draws

    def upper(self, at: np.ndarray) -> np.ndarray:
        """The upper end of the 95 % band at many points, (n,), as that of a normal distribution."""
        means, squares = np.zeros(len(at)), np.zeros(len(at))
        for fit, count in self._fits:
            mean, deviation = fit.predict(at, return_std=True)
            means += count / DRAWS * mean
            squares += count / DRAWS * (mean**2 + deviation**2)
        return self._in_units(means + 1.96 * np.sqrt(np.maximum(squares - means**2, 0)))

    def _in_units(self, standard: np.ndarray) -> np.ndarray:
        values = self._centre + self._scale * standard
        return np.asarray(np.exp(values) if self._logarithmic else values)


def noise_shares(seeds: Sequence[int]) -> np.ndarray:
    """The share of each trial in the noise of one with the fewest seeds, (trials,)."""
    counts = np.maximum(1, np.asarray(seeds))
    return np.asarray(counts.min() / counts)
