"""The toys' samplers against closed-form moments, supports and orientations."""

import math
from typing import get_args

import pytest
import torch

from vamf.data.toys import TOYS, Toy, ToyName
from vamf.rng import generator

N = 200_000

# Means and second moments E|x|^2 in closed form.
SWISS_A, SWISS_B = 1.5 * math.pi, 4.5 * math.pi
MOMENTS = {
    "checkerboard": ((0.0, 0.0), 2 * 16 / 3),
    "eight_gaussians": ((0.0, 0.0), 9 + 2 / 16),
    "two_moons": ((1.0, 0.5), 4 * (1 + (1.25 + 1 - 2 / math.pi)) / 2 + 8 * 0.08**2),
    "swiss_roll": (
        (0.25, 1 / (12 * math.pi)),
        (SWISS_B**3 - SWISS_A**3) / (3 * (SWISS_B - SWISS_A)) / 64 + 2 * 0.08**2,
    ),
    "two_spirals": ((0.0, 0.0), 9 * math.pi**2 / 2 / 25 + 2 * 0.08**2),
    "pinwheel": ((0.0, 0.0), 2.25 * (1 + 0.3**2 + 0.1**2)),
}


def points(name, n=N):
    return TOYS[name](n, generator("toy", name))


def within(values, expected, errors=5):
    """Whether a mean over samples lies within some standard errors of its expectation."""
    return abs(values.mean() - expected) < errors * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("name", get_args(ToyName))
def test_moments(name):
    x = points(name).double()
    mean, square = MOMENTS[name]
    assert within(x[:, 0], mean[0]) and within(x[:, 1], mean[1])
    assert within(x.square().sum(1), square)


@pytest.mark.parametrize("name", get_args(ToyName))
def test_samples_are_a_function_of_the_key(name):
    x = points(name, 64)
    assert x.shape == (64, 2) and x.dtype == torch.float32 and x.device.type == "cpu"
    assert torch.equal(x, points(name, 64))
    assert not torch.equal(x, TOYS[name](64, generator("another")))


def test_checkerboard_fills_the_dark_squares_evenly():
    square = (points("checkerboard") / 2).floor().long()
    assert (square.sum(1) % 2 == 0).all() and square.min() == -2 and square.max() == 1
    counts = (4 * square[:, 0] + square[:, 1]).unique(return_counts=True)[1]
    assert len(counts) == 8
    assert (counts - N / 8).abs().max() < 5 * math.sqrt(N * 7 / 64)


def test_eight_gaussians_have_equal_weights_and_deviation_a_quarter():
    x = points("eight_gaussians").double()
    k = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round()
    centres = 3 * torch.stack([(k * math.pi / 4).cos(), (k * math.pi / 4).sin()], 1)
    assert abs((x - centres).std() - 0.25) < 0.002
    counts = (k % 8).long().bincount()
    assert (counts - N / 8).abs().max() < 5 * math.sqrt(N * 7 / 64)


def test_two_moons_are_half_circles_of_radius_two():
    x = points("two_moons")
    upper, lower = x.norm(dim=1) - 2, (x - torch.tensor([2.0, 1.0])).norm(dim=1) - 2
    distance = torch.minimum(upper.abs(), lower.abs())
    assert distance.max() < 6 * 0.16


@pytest.mark.parametrize(("name", "arms", "scale"), [("swiss_roll", 1, 8), ("two_spirals", 2, 5)])
def test_spirals_turn_counterclockwise_outwards(name, arms, scale):
    x = points(name)
    phase = arms * (torch.atan2(x[:, 1], x[:, 0]) - scale * x.norm(dim=1))
    # Radial noise of 0.08 scale turns the phase by a normal angle: E cos = exp(-variance / 2).
    expected = math.exp(-((arms * scale * 0.08) ** 2) / 2)
    assert abs(phase.cos().mean() - expected) < 0.05


def test_pinwheel_bends_as_its_formula_says():
    x = points("pinwheel").double()
    fifth = torch.exp(5j * torch.atan2(x[:, 1], x[:, 0])).mean()
    nodes = torch.linspace(-6, 6, 601, dtype=torch.float64)
    weight = torch.exp(-nodes.square() / 2)
    weight = torch.outer(weight, weight) / weight.sum() ** 2
    a, b = 1 + 0.3 * nodes[:, None], 0.1 * nodes[None, :]
    expected = (weight * torch.exp(5j * (torch.atan2(b, a) + 0.25 * a.exp()))).sum()
    assert abs(fifth - expected) < 5 / math.sqrt(N)


def test_splits_are_the_same_distribution():
    train, test = Toy(name="pinwheel").load("train"), Toy(name="pinwheel").load("test")
    assert train.shape == (2,)
    assert torch.equal(train.draw(8, generator(1)), test.draw(8, generator(1)))


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of checkerboard.*; got 'moon'"):
        Toy(name="moon")


@pytest.mark.parametrize("name", get_args(ToyName))
def test_batches_are_one_draw_in_parts(name):
    batches = Toy(name=name).batches(3, 5, generator("toy", name))
    assert torch.equal(batches.reshape(15, 2), points(name, 15))
