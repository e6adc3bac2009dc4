"""Non-dominated sorting, crowding and hypervolume: known answers, and the definitions."""

import numpy as np
import optuna
import pytest

from vamf.cluster.search.analysis.pareto import (
    counts_of_better,
    crowding,
    front,
    hypervolume,
    ranks,
)

STAIRS = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])
"""A front of three points; no two agree in a coordinate."""


def test_fronts_are_peeled_one_by_one() -> None:
    points = np.concatenate([STAIRS + 10, STAIRS, STAIRS + 5])
    assert ranks(points).tolist() == [3, 3, 3, 1, 1, 1, 2, 2, 2]
    assert front(points).tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_equal_points_share_a_front_and_one_objective_is_an_order() -> None:
    assert ranks(np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])).tolist() == [1, 1, 2]
    assert ranks(np.array([[3.0], [1.0], [2.0]])).tolist() == [3, 1, 2]
    assert ranks(np.zeros((0, 2))).tolist() == []


def random_points(objectives: int, *, ties: bool) -> np.ndarray:
    """60 points; with ``ties`` on the corners of a grid, where many agree in some coordinates."""
    g = np.random.default_rng(objectives)
    return g.integers(0, 6, (60, objectives)).astype(float) if ties else g.random((60, objectives))


def dominated(points: np.ndarray) -> np.ndarray:
    """Which rows another row is as low as everywhere, and lower than somewhere: the definition."""
    below = (points[:, None] <= points[None]).all(2) & (points[:, None] < points[None]).any(2)
    return below.any(0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_fronts_and_ranks_are_those_of_the_definition(objectives: int, ties: bool) -> None:
    points = random_points(objectives, ties=ties)
    assert (front(points) == ~dominated(points)).all()
    expected, left = np.zeros(len(points), dtype=int), np.arange(len(points))
    while len(left):
        expected[left] += 1  # all that is left lies behind one front more
        left = left[dominated(points[left])]
    assert (ranks(points) == expected).all()


def test_a_hypervolume_is_an_area() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]])
    assert hypervolume(points, np.array([3.0, 3.0])) == 3.0
    assert hypervolume(np.array([[2.0, 5.0]]), np.array([2.0, 9.0])) == 0.0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_a_hypervolume_counts_the_cells_of_a_grid(objectives: int) -> None:
    # Corners are whole numbers below 6: the volume is a number of unit cells, so it is exact.
    points = random_points(objectives, ties=True)[:8]
    cells = np.stack(np.meshgrid(*[np.arange(6)] * objectives), -1).reshape(-1, 1, objectives)
    covered = (points[None] <= cells).all(2).any(1).sum()
    assert hypervolume(points, np.full(objectives, 6.0)) == covered


@pytest.mark.parametrize("objectives", [2, 3])
def test_a_hypervolume_is_the_sum_over_sets_of_points(objectives: int) -> None:
    points, reference = random_points(objectives, ties=False)[:8], np.ones(objectives)
    expected = 0.0  # inclusion and exclusion: boxes overlap in the box of their highest corner
    for chosen in range(1, 2 ** len(points)):
        some = points[[index for index in range(len(points)) if chosen >> index & 1]]
        expected -= (-1) ** len(some) * float(np.prod(reference - some.max(0)))
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-12)


def test_crowding_is_the_extent_of_the_box_between_neighbours() -> None:
    # (4 - 0) / 4 in the first coordinate, (4 - 0) / 4 in the second.
    assert crowding(STAIRS).tolist() == [np.inf, 2.0, np.inf]
    four = np.array([[3.0, 1.0], [0.0, 10.0], [1.0, 4.0], [10.0, 0.0]])
    # Of (1, 4): (3 - 0) / 10 + (10 - 1) / 10; of (3, 1): (10 - 1) / 10 + (4 - 0) / 10.
    assert crowding(four) == pytest.approx([1.3, np.inf, 1.2, np.inf])
    assert crowding(np.array([[2.0, 3.0]])).tolist() == [0.0]


def test_crowding_of_a_front_is_that_of_optuna() -> None:
    from optuna.samplers.nsgaii._elite_population_selection_strategy import (
        _calc_crowding_distance,
    )

    x = np.random.default_rng(0).permutation(np.linspace(0.1, 1, 9))
    points = np.stack([x, 1 / x], 1)
    trials = [optuna.trial.create_trial(values=list(point)) for point in points]
    for number, trial in enumerate(trials):
        trial.number = number
    theirs = _calc_crowding_distance(trials)
    assert crowding(points) == pytest.approx([theirs[number] for number in range(len(points))])


def test_places_count_who_is_better_by_front_and_then_by_room() -> None:
    points = np.concatenate([STAIRS, [[5.0, 5.0]]])
    assert counts_of_better(points).tolist() == [0, 2, 0, 3]
    assert counts_of_better(np.array([[1.0, 1.0], [1.0, 1.0]])).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_point_that_is_not_finite_is_the_worst_and_beats_no_other(bad: float) -> None:
    points = np.concatenate([STAIRS, [[bad, -9.0], [-9.0, bad], [bad, bad]], STAIRS + 5])
    assert front(points).tolist() == [True] * 3 + [False] * 6
    assert ranks(points).tolist() == [1, 1, 1, 3, 3, 3, 2, 2, 2]
    places_of_finite = counts_of_better(np.concatenate([STAIRS, STAIRS + 5])).tolist()
    assert counts_of_better(points).tolist() == [
        *places_of_finite[:3],
        6,
        6,
        6,
        *places_of_finite[3:],
    ]
    assert front(points[3:6]).tolist() == [False] * 3
    assert counts_of_better(points[3:6]).tolist() == [0, 0, 0]  # none is better than another
