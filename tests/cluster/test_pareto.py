"""Non-dominated sorting and crowding: cases with a known answer, and the definition itself."""

import numpy as np
import optuna
import pytest
from optuna.study._multi_objective import _fast_non_domination_rank

from vamf.cluster.pareto import crowding, front, places, ranks

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


@pytest.mark.parametrize("objectives", [2, 3])
def test_ranks_are_those_of_optuna(objectives: int) -> None:
    points = np.random.default_rng(objectives).integers(0, 6, (60, objectives)).astype(float)
    assert (ranks(points) == 1 + _fast_non_domination_rank(points)).all()


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
    assert places(points).tolist() == [0, 2, 0, 3]
    assert places(np.array([[1.0, 1.0], [1.0, 1.0]])).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_point_that_is_not_finite_is_the_worst_and_beats_no_other(bad: float) -> None:
    points = np.concatenate([STAIRS, [[bad, -9.0], [-9.0, bad], [bad, bad]], STAIRS + 5])
    assert front(points).tolist() == [True] * 3 + [False] * 6
    assert ranks(points).tolist() == [1, 1, 1, 3, 3, 3, 2, 2, 2]
    places_of_finite = places(np.concatenate([STAIRS, STAIRS + 5])).tolist()
    assert places(points).tolist() == [*places_of_finite[:3], 6, 6, 6, *places_of_finite[3:]]
    assert front(points[3:6]).tolist() == [False] * 3
    assert places(points[3:6]).tolist() == [0, 0, 0]  # none is better than another
