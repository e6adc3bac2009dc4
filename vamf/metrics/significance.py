"""Tests whether values over seeds differ significantly from those of a baseline."""

from collections.abc import Sequence

import numpy as np

RATE = 0.05
"""Expected share of false ones among the reported differences (false discovery rate)."""
BETTER, WORSE, SAME, LOST = "better", "worse", "indistinguishable", "lost"


def verdicts(values: np.ndarray) -> list[str]:
    """How each row but the first, of (rows, seeds), compares with the first; smaller is better.

    A row with a value that is not finite is lost, and all are if the first is. With one seed the
    others are indistinguishable.
    """
    return joint_verdicts([values])[0]


def joint_verdicts(tables: Sequence[np.ndarray], rate: float = RATE) -> list[list[str]]:
    """`verdicts` of each table; ``rate`` is the share of false ones over all of them."""
    from scipy.stats import false_discovery_control

    kept = [np.isfinite(t).all(1) & bool(np.isfinite(t[0]).all()) for t in tables]
    found = [[SAME if row else LOST for row in rows[1:]] for rows in kept]
    tested = [
        (table, np.flatnonzero(rows), names)
        for table, rows, names in zip(tables, kept, found, strict=True)
        if rows.sum() >= 2 and table.shape[1] >= 2
    ]
    if not tested:
        return found
    p = [p_values(table[rows]) for table, rows, _ in tested]
    significant = false_discovery_control(np.concatenate(p)) < rate
    parts = np.split(significant, np.cumsum([len(part) for part in p])[:-1])
    for (table, rows, names), part in zip(tested, parts, strict=True):
        for row in rows[1:][part]:
            names[row - 1] = BETTER if table[row].mean() < table[0].mean() else WORSE
    return found


def adjusted(values: np.ndarray) -> np.ndarray:
    """`p_values` after Benjamini-Hochberg: those below a rate are discoveries at that rate.

    Valid, as the tests are positively dependent: all rows are compared with the same first one.
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p_values(values), axis=-1))


def p_values(values: np.ndarray) -> np.ndarray:
    """p-values, (..., rows - 1), of equal means of each row and the first; at least two seeds.

    Student's t on the differences from the first of (..., rows, seeds). Their variance is twice
    that of the residuals without the means of rows and of seeds, with (rows - 1) (seeds - 1)
    degrees of freedom; this is exact for normal noise of equal size in all rows, with any effect of
    a seed that is common to them. If a row's own differences vary more, their variance is used
    instead, as noise may be larger in some rows. Larger noise in the first row is not covered.
    """
    from scipy.stats import t

    rows, seeds = values.shape[-2:]
    differences = values[..., 1:, :] - values[..., :1, :]
    mean, freedom = differences.mean(-1), (rows - 1) * (seeds - 1)
    centred = values - values.mean(-1, keepdims=True)
    residuals = centred - centred.mean(-2, keepdims=True)
    pooled = 2 * np.square(residuals).sum((-2, -1)) / freedom
    variance = np.maximum(pooled[..., None], differences.var(-1, ddof=1))
    with np.errstate(divide="ignore", invalid="ignore"):  # no variance over seeds
        statistic = np.where(mean == 0, 0.0, np.abs(mean) / np.sqrt(variance / seeds))
    return np.asarray(2 * t.sf(statistic, freedom))
