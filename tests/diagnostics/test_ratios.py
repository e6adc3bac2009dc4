"""Variance ratio, Jacobian and curvature against closed forms of a linear network."""

import math

import pytest
import torch

from vamf.diagnostics.ratios import (
    CURVATURE_TIMES,
    curvature,
    gaps,
    jacobian,
    ratios,
    variance_ratio,
)
from vamf.diagnostics.variance import TIMES, evaluation_draws
from vamf.flow.trace import draw_signs
from vamf.rng import generator

MATRIX = torch.tensor([[1.5, -0.4], [2.0, 0.3]], dtype=torch.float64)


def linear(z, r, t):
    """u(z, r, t) = A (1 + r) t z."""
    return (z @ MATRIX.T) * ((1 + r) * t)[:, None]


def points(n, dim=2, key="ratios"):
    return torch.randn(2, n, dim, generator=generator(key, n, dim), dtype=torch.float64)


def jacobian_by_hand(t):
    r = max(t - 0.25, 0.0)
    return (t - r) * (1 + r) * t * MATRIX - torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("t", TIMES)
def test_jacobian_of_a_linear_network(t):
    """J is the same for all samples: its Frobenius norm has no spread, kappa is Tr J / d."""
    found = jacobian(linear, evaluation_draws(*points(6), t))
    j = jacobian_by_hand(t)
    # Times are in float32.
    assert found["jacobian_norm"] == pytest.approx((j.norm().item(), 0), rel=1e-6, abs=1e-12)
    assert found["jacobian_std"] == pytest.approx((0, 0), abs=1e-7)
    assert found["kappa"] == pytest.approx((j.trace().item() / 2, 0), rel=1e-6, abs=1e-12)


def test_kappa_keeps_its_sign():
    """-1 where u does not depend on z, positive where it grows faster than 1 / (t - r)."""
    draws = evaluation_draws(*points(4), 0.5)
    still = jacobian(lambda z, r, t: torch.zeros_like(z), draws)
    assert still["kappa"][0] == -1 and still["jacobian_norm"][0] == pytest.approx(2**0.5)
    assert jacobian(lambda z, r, t: 12 * z, draws)["kappa"][0] == pytest.approx(2, rel=1e-6)


def test_signs_estimate_what_the_axes_give():
    """All four sign vectors of the plane: Tr(J J^T) and Tr J are exact, whatever the matrix."""
    draws = evaluation_draws(*points(5), 0.7)
    corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    exact = jacobian(linear, draws)
    found = jacobian(linear, draws, corners[:, None].expand(4, 5, 2))
    assert found["kappa"] == pytest.approx(exact["kappa"], rel=1e-6, abs=1e-12)
    assert found["jacobian_norm"] == pytest.approx(exact["jacobian_norm"], rel=1e-6, abs=1e-12)


def test_jacobian_spreads_over_samples_as_its_error_says():
    """u = z^2 / 2 in one dimension: J = (t - r) z - 1, with z standard normal times a factor."""
    n, t = 4000, 0.9
    x, e = points(n, 1)
    found = jacobian(lambda z, r, t: z.square() / 2, evaluation_draws(x, e, t))
    j = 0.25 * ((1 - t) * x + t * e) - 1
    assert found["kappa"] == pytest.approx((j.mean().item(), j.std().item() / n**0.5), rel=1e-5)
    assert found["jacobian_norm"][0] == pytest.approx(j.abs().mean().item(), rel=1e-5)
    deviation, error = found["jacobian_std"]
    assert deviation == pytest.approx(j.abs().std().item(), rel=1e-5)
    assert error == pytest.approx(deviation / math.sqrt(2 * n), rel=0.1)  # nearly normal


def test_variance_ratio_in_closed_form():
    """The two losses by hand: |u + (t - r) du/dt - v_cond|^2 / d along v_cond and along u."""
    t, r = 0.5, 0.25
    x, e = points(64)
    z, v = x + t * (e - x), e - x
    own = linear(z, *torch.full((2, 64), t, dtype=torch.float64))

    def variance(tangent):
        total = (tangent @ MATRIX.T) * ((1 + r) * t) + (z @ MATRIX.T) * (1 + r)
        compound = (z @ MATRIX.T) * ((1 + r) * t) + (t - r) * total
        return (compound - v).square().sum(1).var().item()

    value, error = variance_ratio(linear, evaluation_draws(x, e, t))
    assert value == pytest.approx(variance(v) / variance(own), rel=1e-5)
    assert 0 < error < value


def test_variance_ratio_is_1_where_the_tangent_does_not_matter():
    """u = t does not depend on z: both losses are the same, and the ratio is certain."""
    found = variance_ratio(
        lambda z, r, t: t[:, None].expand_as(z), evaluation_draws(*points(9), 0.5)
    )
    assert found == pytest.approx((1, 0))


def test_variance_ratios_error_covers_its_spread():
    """Over 400 sets of 200 samples; a third, as the errors of heavy tails are noisy themselves."""
    pairs = []
    for index in range(400):
        x, e = points(200, key=f"spread {index}")
        pairs.append(variance_ratio(linear, evaluation_draws(x, e, 0.9)))
    values, errors = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    assert errors.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=1 / 3)


def test_curvature_in_closed_form():
    """u = c (t - r) leaves |v_cond|^2 - 2 c gap <v_cond, 1> + d (c gap)^2."""
    x, e = points(50)
    v, gap = e - x, 0.3
    value, error = curvature(lambda z, r, t: 5 * (t - r)[:, None].expand_as(z), x, e, 0.7, gap)
    each = (5 * gap - v).square().sum(1)
    assert value == pytest.approx(each.mean().item(), rel=1e-12)
    assert error == pytest.approx(each.std().item() / 50**0.5, rel=1e-12)


@pytest.mark.parametrize(("t", "largest"), [(0.3, 0.2999), (0.5, 0.45), (0.9, 0.45)])
def test_gaps_reach_the_largest_one_or_the_data(t, largest):
    found = gaps(t)
    assert len(found) == 12 and found[0] == pytest.approx(0.01)
    assert found[-1] == pytest.approx(largest) and t - found[-1] >= 1e-4 - 1e-12


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_all_figures_have_names_and_are_finite(shape):
    x, e = torch.randn(2, 8, *shape, generator=generator("all", *shape))
    signs = draw_signs((5, *x.shape), generator("five")) if len(shape) > 1 else None
    weight = torch.ones((), requires_grad=True)
    found = ratios(
        lambda z, r, t: weight * torch.sin(z) * t.reshape(-1, *[1] * len(shape)), x, e, signs
    )
    expected = [
        f"{n}/t{t:.1f}" for n in ("variance_ratio", "jacobian_norm", "kappa") for t in TIMES
    ]
    assert set(expected) < set(found) and len(found) == 4 * len(TIMES) + 12 * len(CURVATURE_TIMES)
    assert "curvature/t0.5_gap0.010" in found and all("/" in name for name in found)
    assert all(math.isfinite(v) and s >= 0 for v, s in found.values())
