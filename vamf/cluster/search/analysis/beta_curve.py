"""Finds the best beta by a smooth fit over all trials, as the best trial may be an outlier."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vamf.cluster.search.analysis.gaussian_process import Curve, Kernel, Process, noise_shares
from vamf.cluster.search.analysis.pareto import front
from vamf.cluster.search.trials import Trial, checked

BETA = "beta.value"
FEWEST = 4
"""The fewest different betas for which curves are fitted."""
KERNELS = [
    Kernel(*chosen)
    for chosen in itertools.product(
        (0.3, 1.0, 3.0), (0.15, 0.3, 0.6, 1.2, 2.4), (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
    )
]
"""Kernels over beta: all of three signals, five length scales and six levels of noise."""


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

    The noise is that of a seed: its variance is divided by a trial's number of seeds. Failed trials
    are left out.
    """
    trials = [trial for trial in trials if checked(trial, objectives).complete]
    x = np.array([trial.settings.get(BETA, np.nan) for trial in trials], dtype=float)
    if any(set(trial.settings) != {BETA} for trial in trials) or len(set(x)) < FEWEST:
        return None
    betas, share = np.linspace(0, 1, 201), noise_shares([len(trial.seeds) for trial in trials])
    fits = [
        Process(x[:, None], [t.metrics[name].value for t in trials], share, KERNELS).curve(
            betas[:, None]
        )
        for name in objectives
    ]
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
