"""The total derivative against central finite differences and closed forms, in float64."""

import pytest
import torch

from vamf.flow.derivatives import (
    amplification,
    axes,
    directional_derivative,
    exact_trace,
    hutchinson_trace,
    terminal_derivative,
    total_derivative,
)
from vamf.flow.trace import draw_signs
from vamf.rng import generator
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
def test_terminal_derivative_is_the_central_difference_in_r(u, shape):
    z, r, t, _ = inputs(shape)
    value, du_dr = terminal_derivative(u, z, r, t)
    assert torch.equal(value, u(z, r, t))
    difference = (u(z, r + H, t) - u(z, r - H, t)) / (2 * H)
    torch.testing.assert_close(du_dr, difference, rtol=1e-7, atol=1e-7)


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


def test_directional_derivative_is_what_the_tangent_adds():
    u, (z, r, t, v) = smooth_net(2), inputs((2,))
    n_constant = total_derivative(u, z, r, t, torch.zeros_like(v))[1]
    expected = total_derivative(u, z, r, t, v)[1] - n_constant
    along = directional_derivative(u, z, r, t, v)
    torch.testing.assert_close(along, expected, rtol=1e-12, atol=1e-13)  # float64 rounding


def linear(shape, key="matrix"):
    """u(z, r, t) = A z t with a full matrix A, and A."""
    dim = torch.Size(shape).numel()
    matrix = torch.randn(dim, dim, generator=generator(key, dim), dtype=torch.float64)
    return lambda z, r, t: ((z.flatten(1) @ matrix.T) * t[:, None]).reshape(z.shape), matrix


def jacobians(matrix, r, t):
    """J = (t - r) t A - I of each sample, (batch, d, d)."""
    return ((t - r) * t)[:, None, None] * matrix - torch.eye(len(matrix), dtype=matrix.dtype)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_amplification_is_the_jacobian_less_the_identity(shape):
    (u, matrix), (z, r, t, v) = linear(shape), inputs(shape)
    expected = (jacobians(matrix, r, t) @ v.flatten(1)[..., None]).reshape(v.shape)
    torch.testing.assert_close(amplification(u, z, r, t, v), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(amplification(u, z, t, t, v), -v)  # r = t


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_exact_trace_is_the_squared_frobenius_norm(shape):
    (u, matrix), (z, r, t, _) = linear(shape), inputs(shape)
    expected = jacobians(matrix, r, t).square().sum((1, 2))
    torch.testing.assert_close(exact_trace(u, z, r, t), expected, rtol=1e-12, atol=0)


def test_axes_are_an_orthonormal_basis_of_the_data():
    z = torch.ones(3, 1, 2, 2)
    basis = torch.stack(list(axes(z))).flatten(2)
    assert torch.equal(basis[:, 1], torch.eye(4)) and torch.equal(basis[:, 0], basis[:, 2])


@pytest.mark.parametrize("u", [linear((4,))[0], smooth_net(4)], ids=["linear", "net"])
def test_hutchinson_trace_is_unbiased(u):
    """2^4 sign vectors hold every pair of signs equally often: their mean is exact."""
    z, r, t, _ = inputs((4,))
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    signs = corners[:, None].expand(16, *z.shape)
    exact = exact_trace(u, z, r, t)
    torch.testing.assert_close(hutchinson_trace(u, z, r, t, signs), exact, rtol=1e-11, atol=0)
    one = hutchinson_trace(u, z, r, t, signs[:1])
    assert (one / exact - 1).abs().max() > 1e-3  # a single probe does scatter


def test_hutchinson_trace_of_a_multiple_of_the_identity_does_not_scatter():
    """u = c z: J = ((t - r) c - 1) I has |J s|^2 = ((t - r) c - 1)^2 d for every sign vector."""
    z, r, t, _ = inputs((3,))
    signs = draw_signs((1, *z.shape), generator("signs")).double()
    trace = hutchinson_trace(lambda z, r, t: 5 * z, z, r, t, signs)
    torch.testing.assert_close(trace, 3 * (5 * (t - r) - 1).square(), rtol=1e-12, atol=0)


def test_trace_follows_each_samples_own_probe():
    u, (z, r, t, _) = smooth_net(2), inputs((2,))
    signs = draw_signs((2, *z.shape), generator("own")).double()
    whole = hutchinson_trace(u, z, r, t, signs)
    for i in range(len(z)):
        alone = hutchinson_trace(u, z[i : i + 1], r[i : i + 1], t[i : i + 1], signs[:, i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-12, atol=0)
