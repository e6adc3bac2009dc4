"""Mixtures against closed-form moments; where their centres come from."""

import math

import pytest
import torch

from vamf.data.mixtures import SHAPES, Mixture
from vamf.rng import generator

NAME = pytest.mark.parametrize("name", SHAPES)


@NAME
@pytest.mark.parametrize("dim", [2, 5, 64])
def test_fixed_centres_lie_on_the_sphere(name, dim):
    centres = Mixture(name=name, dim=dim).positions()
    assert centres.shape == (SHAPES[name].components, dim)
    torch.testing.assert_close(
        centres.norm(dim=1), torch.full((len(centres),), SHAPES[name].radius)
    )


@NAME
def test_moments(name):
    """The mean is that of the centres; E|x|^2 = radius^2 + d std^2, by its standard error."""
    mixture, n = Mixture(name=name, dim=3), 100_000
    x = mixture.load("train").draw(n, generator("mixture")).double()
    radius, std = SHAPES[name].radius, mixture.std
    error = (radius**2 + std**2) ** 0.5 / math.sqrt(n)
    assert (x.mean(0) - mixture.positions().mean(0)).abs().max() < 5 * error
    square = x.square().sum(1)
    assert abs(square.mean() - radius**2 - 3 * std**2) < 5 * square.std() / math.sqrt(n)
    assert x.shape == (n, 3) and mixture.weights.sum() == pytest.approx(1)


def test_components_are_equally_likely_and_of_the_given_deviation():
    mixture, n = Mixture(name="gmm", dim=16), 20_000  # in 16 dimensions they do not overlap
    x, centres = mixture.load("test").draw(n, generator("mixture")), mixture.positions()
    k = torch.cdist(x, centres).argmin(1)
    counts = k.bincount(minlength=8)
    assert (counts - n / 8).abs().max() < 5 * math.sqrt(n * 7 / 64)
    assert (x - centres[k]).std() == pytest.approx(0.3, abs=0.002)


def test_fixed_centres_are_a_function_of_name_dimension_and_seed():
    base = Mixture(dim=4)
    assert torch.equal(base.positions(), Mixture(dim=4).positions())
    assert not torch.equal(base.positions(), Mixture(dim=4, centres_seed=1).positions())
    a, b = (base.load("train").draw(8, generator(k)) for k in (1, 1))
    assert torch.equal(a, b) and a.dtype == torch.float32


def nearest_centres(x, std):
    """How far points lie from the mean of their batch's only component, in deviations."""
    return (x - x.mean(1, keepdim=True)).norm(dim=-1) / std


def test_redrawn_centres_are_common_to_a_batch_and_new_for_the_next(monkeypatch):
    """With one component, a batch's mean is its centre: on the sphere, elsewhere every time."""
    one = SHAPES["gmm"]._replace(components=1, std=0.01)
    monkeypatch.setitem(SHAPES, "gmm", one)
    x = Mixture(name="gmm", dim=3, centres="redrawn").batches(5, 400, generator("redrawn"))
    assert x.shape == (5, 400, 3)
    means = x.mean(1)
    torch.testing.assert_close(means.norm(dim=1), torch.full((5,), 3.0), atol=0.01, rtol=0)
    assert torch.cdist(means, means).fill_diagonal_(9).min() > 0.1
    assert nearest_centres(x, 0.01).max() < 8
    fixed = Mixture(name="gmm", dim=3).batches(5, 400, generator("redrawn"))
    assert torch.cdist(fixed.mean(1), fixed.mean(1)).max() < 0.01


def test_redrawn_centres_make_a_shell():
    """Over many batches of one point the marginal is isotropic: mean 0, covariance a multiple."""
    mixture, n = Mixture(dim=4, centres="redrawn"), 20_000
    x = mixture.batches(n, 1, generator("shell"))[:, 0].double()
    variance = 1.5**2 / 4 + 0.25
    covariance = x.T @ x / n
    assert x.mean(0).abs().max() < 5 * math.sqrt(variance / n)
    assert (covariance - variance * torch.eye(4)).abs().max() < 10 * variance / math.sqrt(n)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"name": "gm"}, "name must be one of gmm, dgmm; got 'gm'"),
        ({"dim": 1}, "dim must lie in 2, ..., 64; got 1"),
        ({"dim": 65}, "dim must lie in 2, ..., 64; got 65"),
        ({"centres": "moving"}, "centres must be fixed or redrawn; got 'moving'"),
        (
            {"centres": "redrawn", "centres_seed": 1},
            "centres_seed would be ignored with redrawn centres; got 1",
        ),
    ],
)
def test_what_a_mixture_cannot_be(fields, line):
    with pytest.raises(ValueError) as raised:
        Mixture(**fields)
    assert str(raised.value) == line


def test_redrawn_centres_have_no_positions():
    with pytest.raises(ValueError, match="centres must be fixed to have positions; got redrawn"):
        Mixture(centres="redrawn").positions()
