"""The total derivative against central finite differences and closed forms, in float64."""

import pytest
import torch

from vamf.flow.derivatives import total_derivative
from vamf.random import generator
from vamf.typing import expand_like

H = 1e-5


def smooth_net(dim):
    """A two-layer network of random weights, with r and t entering separately."""
    g = generator("derivative", dim)
    w1, wr, wt, b = (torch.randn(16, n, generator=g).double() for n in (dim, 1, 1, 1))
    w2 = torch.randn(dim, 16, generator=g).double() / 4

    def u(z, r, t):
        h = z.flatten(1) @ w1.T + r[:, None] * wr.T + t[:, None] * wt.T + b.T
        return (torch.tanh(h) @ w2.T).reshape(z.shape)

    return u


def closed_form(z, r, t):
    r, t = expand_like(r, z), expand_like(t, z)
    return torch.sin(z) * torch.exp(3 * r) + t**2 * z**3


def closed_derivative(z, r, t, v):
    """d/dt of ``closed_form`` along dz/dt = v with r held fixed, by hand."""
    r, t = expand_like(r, z), expand_like(t, z)
    return (torch.cos(z) * torch.exp(3 * r) + 3 * t**2 * z**2) * v + 2 * t * z**3


def inputs(shape, n=5):
    g = generator("inputs", *shape)
    z, v = torch.randn(2, n, *shape, generator=g, dtype=torch.float64)
    times = torch.rand(2, n, generator=g, dtype=torch.float64)
    return z, times.amin(0), times.amax(0), v


CASES = [
    pytest.param(smooth_net(2), (2,), id="net-points"),
    pytest.param(smooth_net(12), (3, 2, 2), id="net-images"),
    pytest.param(closed_form, (3,), id="closed-points"),
    pytest.param(closed_form, (1, 2, 2), id="closed-images"),
]


@pytest.mark.parametrize(("u", "shape"), CASES)
def test_total_derivative_is_the_central_difference(u, shape):
    z, r, t, v = inputs(shape)
    value, du_dt = total_derivative(u, z, r, t, v)
    ahead, behind = u(z + H * v, r, t + H), u(z - H * v, r, t - H)
    assert torch.equal(value, u(z, r, t))
    # Truncation h^2 / 6 |u'''| with third derivatives of order 100 here, and rounding eps / h:
    # 2e-9 and 2e-11.
    torch.testing.assert_close(du_dt, (ahead - behind) / (2 * H), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_total_derivative_of_a_closed_form(shape):
    z, r, t, v = inputs(shape)
    du_dt = total_derivative(closed_form, z, r, t, v)[1]
    # The same few products in another order: float64 rounding.
    torch.testing.assert_close(du_dt, closed_derivative(z, r, t, v), rtol=1e-12, atol=1e-12)


def test_total_derivative_is_affine_in_its_tangent():
    u, (z, r, t, v) = smooth_net(2), inputs((2,))
    w = v.flip(0)
    at = [total_derivative(u, z, r, t, tangent)[1] for tangent in (v, w, 0.3 * v + 0.7 * w)]
    torch.testing.assert_close(0.3 * at[0] + 0.7 * at[1], at[2], rtol=1e-12, atol=1e-13)


def test_total_derivative_carries_gradients_unless_they_are_disabled():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    z, r, t, v = inputs((2,))

    def u(z, r, t):
        return scale * closed_form(z, r, t)

    du_dt = total_derivative(u, z, r, t, v)[1]
    (gradient,) = torch.autograd.grad(du_dt.sum(), scale)
    torch.testing.assert_close(gradient, closed_derivative(z, r, t, v).sum())  # linear in scale
    with torch.no_grad():
        value, du_dt = total_derivative(u, z, r, t, v)
    assert not value.requires_grad and not du_dt.requires_grad
