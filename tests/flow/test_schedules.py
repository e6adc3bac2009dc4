"""Schedules of beta: endpoints, monotone in between, and an error for every bad setting."""

import itertools
import math

import pytest

from vamf.flow.schedules import BetaSchedule

GRID = [i / 1000 for i in range(1001)]
MOVING = ("linear", "cosine", "step")


def test_constant():
    assert {BetaSchedule(value=0.3)(p) for p in GRID} == {0.3}
    assert BetaSchedule()(0.5) == 0.0


@pytest.mark.parametrize(
    ("shape", "begin", "finish"),
    [*itertools.product(("linear", "cosine"), (0.0, 0.25), (0.6, 1.0)), ("step", 0.0, 0.6)],
)
@pytest.mark.parametrize(("value", "end"), [(1.0, 0.0), (0.1, 0.9)])
def test_moves_from_value_to_end_and_never_back(shape, begin, finish, value, end):
    schedule = BetaSchedule(value=value, shape=shape, end=end, begin=begin, finish=finish)
    betas = [schedule(p) for p in GRID]
    # 1e-15: rounding of value + (end - value).
    assert all(abs(b - value) < 1e-15 for p, b in zip(GRID, betas, strict=True) if p <= begin)
    assert all(abs(b - end) < 1e-15 for p, b in zip(GRID, betas, strict=True) if p >= finish)
    sign = math.copysign(1, end - value)
    assert all(sign * (b - a) >= 0 for a, b in itertools.pairwise(betas))
    assert min(betas) >= min(value, end) - 1e-15 and max(betas) <= max(value, end) + 1e-15


@pytest.mark.parametrize(
    ("shape", "progress", "share"),
    [
        ("linear", 0.3, 0.25),
        ("linear", 0.4, 0.5),
        ("cosine", 0.4, 0.5),
        ("cosine", 0.3, (1 - math.sqrt(0.5)) / 2),  # (1 - cos(pi / 4)) / 2
        ("cosine", 1 / 3, 0.25),  # (1 - cos(pi / 3)) / 2
    ],
)
def test_share_of_the_way_in_between(shape, progress, share):
    """``share`` is of the way from value to end, with begin .2 and finish .6."""
    schedule = BetaSchedule(value=0.8, shape=shape, end=0.2, begin=0.2, finish=0.6)
    assert schedule(progress) == pytest.approx(0.8 - 0.6 * share, abs=1e-12)  # float64 rounding


def test_step_jumps_at_finish():
    schedule = BetaSchedule(value=1.0, shape="step", end=0.0, finish=0.5)
    assert schedule(math.nextafter(0.5, 0)) == 1.0 and schedule(0.5) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value": -0.1}, "beta must lie in"),
        ({"value": 1.1}, "beta must lie in"),
        ({"value": math.nan}, "beta must lie in"),
        ({"end": 0.5}, "constant beta takes no end"),
        ({"begin": 0.5}, "constant beta takes no end"),
        ({"finish": 0.5}, "constant beta takes no end"),
        *(({"shape": shape}, "needs an end") for shape in MOVING),
        *(({"shape": shape, "end": 1.5}, "the end of beta") for shape in MOVING),
        *(({"shape": shape, "end": math.nan}, "the end of beta") for shape in MOVING),
        ({"shape": "linear", "end": 1.0, "begin": 0.5, "finish": 0.5}, "begin < finish"),
        ({"shape": "linear", "end": 1.0, "begin": -0.1}, "begin < finish"),
        ({"shape": "cosine", "end": 1.0, "finish": 1.1}, "begin < finish"),
        ({"shape": "cosine", "end": 1.0, "finish": math.nan}, "begin < finish"),
        ({"shape": "step", "end": 1.0, "finish": 0.0}, "begin < finish"),
        ({"shape": "step", "end": 1.0, "begin": 0.1}, "takes no begin"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BetaSchedule(**settings)


def test_labels():
    assert BetaSchedule(value=0.75).label == "β=0.750"
    assert BetaSchedule(value=1, shape="cosine", end=0).label == "β=1.000→0.000 cosine"


@pytest.mark.parametrize(("shape", "last"), [("linear", 1 / 8), ("cosine", 0.0380602)])
def test_the_last_step_is_one_short_of_the_end(shape, last):
    """Of 8 steps, from 1 to 0: 1 - 7/8 and (1 + cos(7 pi / 8)) / 2; evaluation then has the end."""
    schedule = BetaSchedule(value=1.0, shape=shape, end=0.0)
    assert schedule(7 / 8) == pytest.approx(last, abs=1e-6)
    assert schedule(8 / 8) == pytest.approx(0.0, abs=1e-15)
