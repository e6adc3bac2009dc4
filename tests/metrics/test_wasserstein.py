"""Sliced Wasserstein distances against closed forms."""

import math

import pytest
import torch

from vamf.data.toys import two_moons
from vamf.metrics.wasserstein import sliced_wasserstein
from vamf.rng import generator

POINTS = two_moons(256, generator("points"))


def directions(count, dim):
    normal = torch.randn(count, dim, generator=generator("directions")).double()
    return normal / normal.norm(dim=1, keepdim=True)


def test_shift_costs_its_mean_projection():
    """Projections of a shifted set are shifted: |<direction, shift>| each, whatever the points."""
    shift = torch.tensor([3.0, -1.0])
    order = torch.randperm(256, generator=generator("order"))
    sw1, sw2 = sliced_wasserstein(
        POINTS, POINTS[order] + shift, directions=50, generator=generator("directions")
    )
    along = (directions(50, 2) @ shift.double()).abs()
    # The points are float32, so shifting them rounds at 1e-7.
    assert sw1 == pytest.approx(float(along.mean()), rel=1e-6)
    assert sw2 == pytest.approx(float(along.square().mean().sqrt()), rel=1e-6)


def test_many_directions_average_over_the_circle():
    """E|<direction, shift>| = 2 |shift| / pi and E<direction, shift>^2 = |shift|^2 / 2."""
    shift = torch.tensor([0.6, 0.8])
    sw1, sw2 = sliced_wasserstein(
        POINTS, POINTS + shift, directions=5000, generator=generator("many")
    )
    assert sw1 == pytest.approx(2 / math.pi, rel=0.03)
    assert sw2 == pytest.approx(math.sqrt(0.5), rel=0.03)


def test_one_dimension_is_the_sorted_difference():
    a, b = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[6.0], [0.0], [3.0]])
    sw1, sw2 = sliced_wasserstein(a, b, directions=3, generator=generator(0))
    assert sw1 == pytest.approx((0 + 2 + 1) / 3)
    assert sw2 == pytest.approx(math.sqrt((0 + 4 + 1) / 3))


def test_metric_properties():
    other = two_moons(256, generator("other"))

    def distance(a, b):
        return sliced_wasserstein(a, b, generator=generator("same"))

    assert distance(POINTS, POINTS.flip(0)) == pytest.approx((0, 0), abs=1e-12)
    assert distance(POINTS, other) == pytest.approx(distance(other, POINTS), rel=1e-12)
    sw1, sw2 = distance(POINTS, other)
    assert 0 < sw1 <= sw2
    assert distance(3 * POINTS, 3 * other) == pytest.approx((3 * sw1, 3 * sw2), rel=1e-6)


def test_images_are_flat_vectors():
    a, b = torch.randn(2, 32, 1, 4, 4, generator=generator("images"))
    assert sliced_wasserstein(a, b, generator=generator(1)) == sliced_wasserstein(
        a.flatten(1), b.flatten(1), generator=generator(1)
    )


def test_unequal_sets_are_refused():
    with pytest.raises(ValueError, match=r"same shape; got \(256, 2\) and \(255, 2\)"):
        sliced_wasserstein(POINTS, POINTS[1:], generator=generator(0))
    with pytest.raises(ValueError, match="at least 1 sample; got 0"):
        sliced_wasserstein(POINTS[:0], POINTS[:0], generator=generator(0))
    with pytest.raises(ValueError, match="directions must be at least 1; got 0"):
        sliced_wasserstein(POINTS, POINTS, directions=0, generator=generator(0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_point_that_is_no_number_has_no_distance(value):
    broken = POINTS.clone()
    broken[7, 1] = value
    for pair in ((broken, POINTS), (POINTS, broken), (broken, broken)):
        found = sliced_wasserstein(*pair, directions=50, generator=generator("directions"))
        assert not any(map(math.isfinite, found))
