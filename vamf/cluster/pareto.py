"""Ranking points of which every coordinate, finite, is to be small."""

import numpy as np


def front(points: np.ndarray) -> np.ndarray:
    """Which rows, of (n, objectives), no other row beats: as low everywhere, lower somewhere."""
    below = (points[:, None] <= points[None]).all(2) & (points[:, None] < points[None]).any(2)
    return np.asarray(~below.any(0))


def ranks(points: np.ndarray) -> np.ndarray:
    """The front that each row lies on, (n,): 1 if no row beats it, 2 if only rows of 1 do, ..."""
    found = np.zeros(len(points), dtype=int)
    while (left := found == 0).any():
        found[np.flatnonzero(left)[front(points[left])]] = found.max() + 1
    return found


def crowding(points: np.ndarray) -> np.ndarray:
    """How far the neighbours of each row of a front are apart, (n,), as in NSGA-II.

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
    for number in set(rank):
        apart[rank == number] = crowding(points[rank == number])
    lower = rank[None] < rank[:, None]
    sparser = (rank[None] == rank[:, None]) & (apart[None] > apart[:, None])
    return np.asarray((lower | sparser).sum(1))
