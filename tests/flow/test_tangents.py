"""The mixed tangent, and the velocity that a network has at r = t."""

import pytest
import torch

from vamf.flow.tangents import boundary_velocity, mix_tangent
from vamf.rng import generator

Z, V_COND, V_HAT = torch.randn(3, 4, 2, generator=generator("tangent"), dtype=torch.float64)
T = torch.linspace(0.2, 0.9, 4, dtype=torch.float64)


def refuse(z, t):
    raise AssertionError("the proxy was evaluated")


def test_beta_0_never_evaluates_the_proxy():
    assert torch.equal(mix_tangent(V_COND, Z, T, 0.0, refuse), V_COND)


def test_beta_1_does_not_depend_on_the_conditional_velocity():
    nothing = torch.full_like(V_COND, float("nan"))
    assert torch.equal(mix_tangent(nothing, Z, T, 1.0, lambda z, t: V_HAT), V_HAT)


@pytest.mark.parametrize("beta", [1e-6, 0.25, 0.5, 0.75, 1 - 1e-6])
def test_tangent_is_the_convex_combination(beta):
    mixed = mix_tangent(V_COND, Z, T, beta, lambda z, t: V_HAT)
    expected = (1 - beta) * V_COND + beta * V_HAT
    torch.testing.assert_close(mixed, expected, rtol=1e-14, atol=1e-14)  # float64 rounding


def test_proxy_receives_the_point_and_its_time():
    seen = []
    mix_tangent(V_COND, Z, T, 0.5, lambda z, t: seen.append((z, t)) or V_HAT)
    assert len(seen) == 1 and torch.equal(seen[0][0], Z) and torch.equal(seen[0][1], T)


def test_boundary_velocity_is_the_network_at_equal_times_without_a_graph():
    scale = torch.tensor(2.0, requires_grad=True)
    v_hat = boundary_velocity(lambda z, r, t: scale * z + (r + 1 / (1 + 9 * (t - r)))[:, None])
    velocity = v_hat(Z, T)
    assert not velocity.requires_grad
    assert torch.equal(velocity, 2 * Z + (T + 1)[:, None])
