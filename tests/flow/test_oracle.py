"""The closed-form marginal velocity against posterior means computed by other routes."""

import math

import pytest
import torch

from vamf.flow.oracle import BatchProxy, EmpiricalVelocity, MixtureVelocity, for_batch
from vamf.rng import generator


def normal(*shape, key="oracle"):
    return torch.randn(*shape, generator=generator(key, *shape), dtype=torch.float64)


def test_a_mixture_has_the_posterior_mean_of_numerical_integration():
    """E[e - x | z] with e = (z - (1 - t) x) / t, by the trapezoidal rule over x on a line."""
    centres, std = torch.tensor([[-2.0], [0.5], [1.5]], dtype=torch.float64), 0.3
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    prior = (-((x - centres) ** 2) / (2 * std**2)).exp().sum(0)
    for time in (0.05, 0.3, 0.7, 0.95):
        e = (z - (1 - time) * x) / time
        posterior = prior * (-(e**2) / 2).exp()
        expected = ((e - x) * posterior).sum(1) / posterior.sum(1)
        found = MixtureVelocity(centres, std)(z, torch.full((13,), time, dtype=torch.float64))
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-8, atol=1e-8)


def test_at_the_noise_the_velocity_is_the_noise_less_the_mean():
    centres = normal(5, 4)
    z, t = normal(3, 4, key="noise"), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(MixtureVelocity(centres, 0.5)(z, t), z - centres.mean(0))
    torch.testing.assert_close(EmpiricalVelocity(centres)(z, t), z - centres.mean(0))


def test_the_empirical_velocity_is_the_softmax_over_the_points():
    points, z = normal(50, 2, 3), normal(7, 2, 3, key="z")
    t = torch.linspace(0.05, 1, 7, dtype=torch.float64)
    distance = (z[:, None] - (1 - t)[:, None, None, None] * points).square().sum((2, 3))
    weights = (-distance / (2 * t[:, None] ** 2)).softmax(1)
    mean = torch.einsum("bn,nij->bij", weights, points)
    expected = (z - mean) / t[:, None, None]
    for chunk in (1, 7, 50, 1000):
        found = EmpiricalVelocity(points, chunk)(z, t)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_narrow_components_become_points():
    points, z = normal(6, 3), normal(20, 3, key="z")
    t = torch.linspace(0.1, 1, 20, dtype=torch.float64)
    narrow = MixtureVelocity(points, 1e-6)(z, t)
    torch.testing.assert_close(narrow, EmpiricalVelocity(points)(z, t), rtol=1e-6, atol=1e-6)


def test_pixels_stand_for_values_between_minus_1_and_1():
    pixels = torch.randint(0, 256, (9, 1, 4, 4), generator=generator("pixels"), dtype=torch.uint8)
    z, t = torch.randn(5, 1, 4, 4, generator=generator("z")), torch.full((5,), 0.4)
    found = EmpiricalVelocity(pixels)(z, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, EmpiricalVelocity(pixels.double() / 127.5 - 1)(z, t))


def test_the_velocity_is_finite_at_the_data():
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    for oracle in (MixtureVelocity(z, 0.3), EmpiricalVelocity(z)):
        assert oracle(z, torch.zeros(2)).isfinite().all()


@pytest.mark.parametrize(("shape", "std"), [((3,), 0.1), ((3, 2), 0.0), ((3, 2), math.nan)])
def test_a_mixture_needs_centres_and_a_deviation(shape, std):
    with pytest.raises(ValueError, match="positive std"):
        MixtureVelocity(torch.zeros(shape), std)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_label_leaves_the_points_of_its_class(chunk):
    """And one that no point has all of them."""
    points, z = normal(8, 2), normal(5, 2, key="z")
    t, labels = torch.linspace(0.1, 1, 5).double(), torch.tensor([0, 1, 1, 0, 2, 2, 2, 0])
    found = EmpiricalVelocity(points, chunk, labels)(z, t, torch.tensor([0, 1, 2, 3, 1]))
    for i, wanted in enumerate([0, 1, 2, None, 1]):
        own = points if wanted is None else points[labels == wanted]
        expected = EmpiricalVelocity(own)(z[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-10, atol=1e-10)
    whole = EmpiricalVelocity(points, chunk, labels)(z, t)
    torch.testing.assert_close(whole, for_batch(BatchProxy(), points)(z, t), rtol=1e-10, atol=1e-12)


def test_a_larger_batch_comes_near_the_population():
    """For Gaussian data, as 1 / sqrt(n): a hundred times as many leave a tenth, within a half."""
    z, t = normal(200, 2, key="z"), torch.full((200,), 0.7, dtype=torch.float64)
    exact = MixtureVelocity(torch.zeros(1, 2), 1.0)(z, t)
    few, many = (
        (for_batch(BatchProxy(), normal(n, 2, key="batch"))(z, t) - exact).norm()
        for n in (100, 10_000)
    )
    assert few / many == pytest.approx(10, rel=0.5)


def test_only_the_proxy_of_the_batch_depends_on_the_batch():
    exact = EmpiricalVelocity(normal(4, 2))
    assert for_batch(exact, normal(3, 2)) is exact
    with pytest.raises(AssertionError, match="for_batch was not called"):
        BatchProxy()(normal(3, 2), torch.ones(3))
