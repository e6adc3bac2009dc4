"""Whether points of a search differ from beta = 0, given how much seeds differ."""

from collections.abc import Sequence

import numpy as np

from vamf.cluster.trials import Trial

BASELINE = "β=0.000"
"""The label of MeanFlow itself, with which every other trial is compared."""
RESAMPLES = 20_000
UNKNOWN, SAME = "-", "indistinguishable"


def verdicts(trials: Sequence[Trial], objective: str) -> dict[int, str]:
    """For each trial by number: better, worse or indistinguishable; "-" without a comparison.

    Trials are paired with beta = 0 by seed. A bootstrap resamples the differences' residuals, which
    are pooled over all trials, as seeds are few; a 95 % interval of the mean difference that leaves
    out 0 is a verdict. One seed tells nothing of seeds. Smaller is better.
    """
    base = next((trial for trial in trials if trial.label == BASELINE), None)
    told = {trial.number: UNKNOWN for trial in trials}
    if base is None:
        return told
    peers = [t for t in trials if t is not base and len(t.seeds) == len(base.seeds)]
    if not peers:
        return told
    differences = np.array([_differences(trial, base, objective) for trial in peers])
    if differences.shape[1] < 2:
        return told | {trial.number: SAME for trial in peers}
    low, high = _interval(differences)
    for trial, mean in zip(peers, differences.mean(1), strict=True):
        verdict = "better" if mean - low < 0 else "worse" if mean - high > 0 else SAME
        told[trial.number] = verdict
    return told


def _differences(trial: Trial, base: Trial, objective: str) -> list[float]:
    return [a[objective] - b[objective] for a, b in zip(trial.seeds, base.seeds, strict=True)]


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a mean difference about its truth."""
    seeds = differences.shape[1]
    residuals = differences - differences.mean(1, keepdims=True)
    pool = residuals.ravel() * (seeds / (seeds - 1)) ** 0.5  # centring shrinks them
    means = np.random.default_rng(0).choice(pool, (RESAMPLES, seeds)).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
