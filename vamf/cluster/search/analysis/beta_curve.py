"""Finds the best beta by a smooth fit over all trials, as the best trial may be an outlier."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vamf.cluster.search.analysis.pareto import front
from vamf.cluster.search.trials import Trial, checked

BETA = "beta.value"
FEWEST = 4
"""The fewest different betas for which curves are fitted."""
DRAWS = 2000
"""Curves drawn from the posterior."""
SIGNALS = (0.3, 1.0, 3.0)
LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4)
NOISES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Kernel variances and length scales (of beta), for standardised objectives."""


class Curve(NamedTuple):
    """One objective over beta: a Gaussian process's posterior."""

    mean: np.ndarray
    """(n,): the median, in the objective's units."""
    low: np.ndarray
    """(n,): lower end of its 95 % band: of the curve, not of another training."""
    high: np.ndarray
    """(n,): upper end."""


class Smooth(NamedTuple):
    """The fitted objectives over beta, and the best beta."""

    betas: np.ndarray
    """(n,): a grid on [0, 1]."""
    curves: tuple[Curve, ...]
    """One for each objective."""
    best: float
    """Where the last objective, the distance, is lowest."""
    interval: tuple[float, float]
    """95 % of where the lowest point of curves drawn from the posterior lies."""
    front: np.ndarray
    """(n,) of bool: which betas are Pareto-optimal in the medians."""


def smooth(trials: Sequence[Trial], objectives: Sequence[str]) -> Smooth | None:
    """Fits each objective over beta; None unless the trials differ in a constant beta alone.

    Gaussian processes with a squared-exponential kernel and noise, averaged over these kernels'
    parameters; positive objectives are fitted as logarithms. The noise is that of a seed: its
    variance is divided by a trial's number of seeds. Failed trials are left out.
    """
    trials = [trial for trial in trials if checked(trial, objectives).complete]
    x = np.array([trial.settings.get(BETA, np.nan) for trial in trials], dtype=float)
    if any(set(trial.settings) != {BETA} for trial in trials) or len(set(x)) < FEWEST:
        return None
    betas = np.linspace(0, 1, 201)
    seeds = np.array([max(1, len(trial.seeds)) for trial in trials])
    share = seeds.min() / seeds  # of the noise of a trial with the fewest seeds
    fits = [_fit(x, [t.metrics[name].value for t in trials], share, betas) for name in objectives]
    curves = tuple(curve for curve, _ in fits)
    lowest = betas[fits[-1][1].argmin(0)]
    low, high = np.quantile(lowest, [0.025, 0.975])
    return Smooth(
        betas=betas,
        curves=curves,
        best=float(betas[curves[-1].mean.argmin()]),
        interval=(float(low), float(high)),
        front=front(np.stack([curve.mean for curve in curves], 1)),
    )


def _fit(
    x: np.ndarray, values: Sequence[float], share: np.ndarray, betas: np.ndarray
) -> tuple[Curve, np.ndarray]:
    """The posterior at ``betas`` and curves drawn from it, (n, draws)."""
    y = np.asarray(values)
    logarithmic = bool((y > 0).all())
    y = np.log(y) if logarithmic else y
    centre, scale = y.mean(), y.std() or 1.0
    draws = centre + scale * _posterior(x[:, None], (y - centre) / scale, share, betas[:, None])
    draws = np.exp(draws) if logarithmic else draws
    low, mean, high = np.quantile(draws, [0.025, 0.5, 0.975], axis=1)
    return Curve(mean, low, high), draws


def _posterior(x: np.ndarray, y: np.ndarray, share: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Curves at ``at``, (n, draws), of processes weighted by their marginal likelihood.

    The noise of each point of x is its ``share``, (points,), of the process's. Averaged over
    signal, length and noise on a grid: the likeliest ones alone are overconfident.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor  # slow to import
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    fits = [
        GaussianProcessRegressor(
            ConstantKernel(signal) * RBF(length), alpha=noise * share, optimizer=None
        ).fit(x, y)
        for signal, length, noise in itertools.product(SIGNALS, LENGTHS, NOISES)
    ]
    likelihoods = np.array([fit.log_marginal_likelihood_value_ for fit in fits])
    weights = np.exp(likelihoods - likelihoods.max())
    random = np.random.default_rng(0)
    drawn = []
    for fit, count in zip(fits, random.multinomial(DRAWS, weights / weights.sum()), strict=True):
        if count:
            mean, covariance = fit.predict(at, return_cov=True)
            drawn.append(random.multivariate_normal(mean, covariance, count, method="eigh").T)
    return np.concatenate(drawn, axis=1)
