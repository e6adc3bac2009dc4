"""Schedules of beta: endpoints, monotone in between, and an error for every bad setting."""

import itertools
import math

import pytest
import torch

from vamf.flow.schedules import BetaOfTime, BetaSchedule

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
        ({"shape": "step", "end": 1.0, "begin": 0.1, "finish": 0.5}, "takes no begin"),
        ({"shape": "step", "end": 1.0}, "happens at finish < 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BetaSchedule(**settings)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize(("begin", "finish"), [(0.0, 1.0), (0.0, 1e-3), (0.999, 1.0)])
def test_limits_themselves_are_allowed(value, end, begin, finish):
    schedule = BetaSchedule(value=value, shape="linear", end=end, begin=begin, finish=finish)
    assert (schedule(0.0), schedule(1.0)) == (value, end)
    of_time = BetaOfTime(at_data=value, at_half=end, at_noise=value)
    assert (
        of_time.at(0.0, torch.tensor([0.0, 0.5, 1.0])) == torch.tensor([value, end, value])
    ).all()


def test_a_function_of_time_is_0_unless_it_says_otherwise():
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert BetaOfTime().at(0.5, t) == 0 and BetaOfTime().label == "β=0.000"
    parts = [BetaOfTime(**{name: 1.0}).at(0.5, t) for name in ("at_data", "at_half", "at_noise")]
    # Hat functions: each is 1 at its own time, and together they are 1 everywhere.
    assert torch.stack(parts).tolist() == [
        [1.0, 0.5, 0.0, 0.0, 0.0],
        [0.0, 0.5, 1.0, 0.5, 0.0],
        [0.0, 0.0, 0.0, 0.5, 1.0],
    ]


def test_labels():
    of_time = BetaOfTime(at_data=0.1, at_half=0.5, at_noise=0.9)
    assert of_time.label == "β(t)=0.100 0.500 0.900"
    assert BetaSchedule(value=0.75).label == "β=0.750"
    assert BetaSchedule(value=1, shape="cosine", end=0).label == "β=1.000→0.000 cosine"


@pytest.mark.parametrize(("shape", "last"), [("linear", 1 / 8), ("cosine", 0.0380602)])
def test_the_last_step_is_one_short_of_the_end(shape, last):
    """Of 8 steps, from 1 to 0: 1 - 7/8 and (1 + cos(7 pi / 8)) / 2; evaluation then has the end."""
    schedule = BetaSchedule(value=1.0, shape=shape, end=0.0)
    assert schedule(7 / 8) == pytest.approx(last, abs=1e-6)
    assert schedule(8 / 8) == pytest.approx(0.0, abs=1e-15)
