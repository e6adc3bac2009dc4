"""Whether figures over seeds differ from a baseline's by more than the luck of few seeds."""

import numpy as np

RATE = 0.05
"""Share of wrong ones expected among the differences that are told (false discovery rate)."""
BETTER, WORSE, SAME, LOST = "better", "worse", "indistinguishable", "lost"


def verdicts(figures: np.ndarray) -> list[str]:
    """How each row but the first, of (rows, seeds), compares with the first; smaller is better.

    A row with a figure that is not finite is lost, and all are if the first is. One seed tells
    nothing.
    """
    kept = np.isfinite(figures).all(1) & bool(np.isfinite(figures[0]).all())
    told = [SAME if row else LOST for row in kept[1:]]
    if kept.sum() < 2 or figures.shape[1] < 2:
        return told
    rows = figures[kept]
    for row in np.flatnonzero(adjusted(rows) < RATE):
        lower = rows[row + 1].mean() < rows[0].mean()
        told[np.flatnonzero(kept)[row + 1] - 1] = BETTER if lower else WORSE
    return told


def adjusted(figures: np.ndarray) -> np.ndarray:
    """`p_values` after Benjamini-Hochberg: those below a rate are discoveries at that rate.

    It holds for them, as they are positively dependent: all rows are compared with the same first.
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p_values(figures), axis=-1))


def p_values(figures: np.ndarray) -> np.ndarray:
    """Of each row but the first, (..., rows - 1), that its mean is the first's; two seeds or more.

    Student's t on the differences from the first of (..., rows, seeds). Their variance is twice
    that of the residuals without the means of rows and of seeds, which is exact for normal noise
    that is as large in all rows, whatever a seed does to all of them; (rows - 1) (seeds - 1)
    degrees of freedom. Where a row's own differences vary more, theirs is taken: against noise that
    is larger in some rows. It is no help where that of the first is.
    """
    from scipy.stats import t

    rows, seeds = figures.shape[-2:]
    differences = figures[..., 1:, :] - figures[..., :1, :]
    mean, freedom = differences.mean(-1), (rows - 1) * (seeds - 1)
    centred = figures - figures.mean(-1, keepdims=True)
    residuals = centred - centred.mean(-2, keepdims=True)
    pooled = 2 * np.square(residuals).sum((-2, -1)) / freedom
    variance = np.maximum(pooled[..., None], differences.var(-1, ddof=1))
    with np.errstate(divide="ignore", invalid="ignore"):  # seeds without any luck
        statistic = np.where(mean == 0, 0.0, np.abs(mean) / np.sqrt(variance / seeds))
    return np.asarray(2 * t.sf(statistic, freedom))
