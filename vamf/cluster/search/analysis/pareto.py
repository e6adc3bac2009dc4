"""Pareto fronts, ranks and hypervolumes of points to be minimised.

A point that is not finite is the worst. moocore is imported inside the functions, so that training
and benchmarks run without it.
"""

import numpy as np


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """The volume that finite (n, objectives) points dominate, up to a reference (objectives,)."""
    import moocore

    assert np.isfinite(points).all()  # searches leave out trials with others
    return float(moocore.hypervolume(points, ref=reference))


def front(points: np.ndarray) -> np.ndarray:
    """Which rows of (n, objectives) no other dominates: as low everywhere, lower somewhere.

    A row that is not finite is never one of them, and dominates no other.
    """
    import moocore

    found, finite = np.zeros(len(points), dtype=bool), _finite(points)
    found[finite] = moocore.is_nondominated(points[finite], keep_weakly=True)
    return found


def ranks(points: np.ndarray) -> np.ndarray:
    """The front of each row, (n,): 1 if no row dominates it, 2 if only rows of 1 do, ...

    Rows that are not finite share the last one.
    """
    import moocore

    found, finite = np.zeros(len(points), dtype=int), _finite(points)
    found[finite] = 1 + moocore.pareto_rank(points[finite])
    found[~finite] = found.max(initial=0) + 1
    return found


def _finite(points: np.ndarray) -> np.ndarray:
    """Which rows are finite, (n,)."""
    return np.asarray(np.isfinite(points).all(-1))


def crowding(points: np.ndarray) -> np.ndarray:
    """The crowding distance of each finite row of a front, (n,), as in NSGA-II.

    The distance of its two neighbours in each objective, as a share of the front's extent, summed;
    infinite at the ends.
    """
    distance = np.zeros(len(points))
    for values in points.T:
        order = values.argsort(kind="stable")
        ordered = values[order]
        extent = ordered[-1] - ordered[0]
        if extent > 0:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
            distance[values == ordered[0]] = distance[values == ordered[-1]] = np.inf
    return distance


def counts_of_better(points: np.ndarray) -> np.ndarray:
    """How many rows are better than each, (n,): on a lower front, or less crowded on the same."""
    rank, apart = ranks(points), np.zeros(len(points))
    for number in set(rank[_finite(points)]):
        apart[rank == number] = crowding(points[rank == number])
    lower = rank[None] < rank[:, None]
    sparser = (rank[None] == rank[:, None]) & (apart[None] > apart[:, None])
    return np.asarray((lower | sparser).sum(1))
