"""Ranking points of which every coordinate is to be small; one that is not finite is the worst."""

import numpy as np


def front(points: np.ndarray) -> np.ndarray:
    """Which rows, of (n, objectives), no other row beats: as low everywhere, lower somewhere.

    A row that is not finite is none of them, and beats no other.
    """
    found = np.zeros(len(points), dtype=bool)
    finite = np.flatnonzero(_finite(points))
    rows = points[finite]
    below = (rows[:, None] <= rows[None]).all(2) & (rows[:, None] < rows[None]).any(2)
    found[finite] = ~below.any(0)
    return found


def ranks(points: np.ndarray) -> np.ndarray:
    """The front that each row lies on, (n,): 1 if no row beats it, 2 if only rows of 1 do, ...

    Rows that are not finite share the last one.
    """
    found, finite = np.zeros(len(points), dtype=int), _finite(points)
    while (left := finite & (found == 0)).any():
        found[np.flatnonzero(left)[front(points[left])]] = found.max() + 1
    found[~finite] = found.max(initial=0) + 1
    return found


def _finite(points: np.ndarray) -> np.ndarray:
    """Which rows are finite, (n,)."""
    return np.asarray(np.isfinite(points).all(-1))


def crowding(points: np.ndarray) -> np.ndarray:
    """How far the neighbours of each finite row of a front are apart, (n,), as in NSGA-II.

    In each objective, as a share of the front's extent; infinite at its ends.
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


def places(points: np.ndarray) -> np.ndarray:
    """Of each row, how many are better, (n,): on a lower front, or on its own and less crowded."""
    rank, apart = ranks(points), np.zeros(len(points))
    for number in set(rank[_finite(points)]):
        apart[rank == number] = crowding(points[rank == number])
    lower = rank[None] < rank[:, None]
    sparser = (rank[None] == rank[:, None]) & (apart[None] > apart[:, None])
    return np.asarray((lower | sparser).sum(1))
