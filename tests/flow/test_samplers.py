"""Sampling: exact on exact average velocities, first order on velocities alone."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from vamf.flow.samplers import euler, heun, sample
from vamf.rng import generator
from vamf.typing import expand_like

E = torch.randn(6, 2, generator=generator("sampler"), dtype=torch.float64)
X0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
SCALE = 0.5

ending = partial(heun, last_euler=True)


def to_one_point(z, r, t):
    """The average velocity of the data set {X0}: the path through z is straight."""
    return (z - X0) / expand_like(t, z)


def sigma(t):
    return ((1 - t).square() * SCALE**2 + t.square()).sqrt()


def gaussian(z, r, t):
    """The average velocity for data N(0, SCALE^2): the flow maps z to z sigma(r) / sigma(t)."""
    shrink = (1 - sigma(r) / sigma(t)) / (t - r)
    return expand_like(shrink, z) * z


def gaussian_velocity(z, r, t):
    """The instantaneous velocity z sigma'(t) / sigma(t), used as if it were the average one."""
    return expand_like((t - (1 - t) * SCALE**2) / sigma(t).square(), z) * z


def test_one_step_formula():
    def u(z, r, t):
        assert (r == 0).all() and (t == 1).all() and r.shape == t.shape == (len(z),)
        return torch.sin(3 * z)

    assert torch.equal(sample(u, E), E - torch.sin(3 * E))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_one_data_point_is_hit_exactly(steps):
    landed = sample(to_one_point, E, steps)
    torch.testing.assert_close(landed, X0.expand_as(E), rtol=1e-13, atol=1e-13)  # rounding


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_exact_average_velocity_maps_a_gaussian_in_any_number_of_steps(steps):
    torch.testing.assert_close(sample(gaussian, E, steps), SCALE * E, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_steps_compose(steps):
    seen, z = [], E

    def u(z, r, t):
        seen.append((r[0].item(), t[0].item()))
        return torch.cos(z) * expand_like(1 + t - 2 * r, z)

    result = sample(u, E, steps)
    assert [t for _, t in seen] == pytest.approx([1 - i / steps for i in range(steps)])
    assert [r for r, _ in seen] == pytest.approx([1 - (i + 1) / steps for i in range(steps)])
    for i in range(steps):
        t = torch.full((len(E),), 1 - i / steps, dtype=E.dtype)
        r = torch.full((len(E),), 1 - (i + 1) / steps, dtype=E.dtype)
        z = z - u(z, r, t) / steps
    torch.testing.assert_close(result, z, rtol=1e-13, atol=1e-13)  # float64 rounding


def test_instantaneous_velocity_makes_it_eulers_method():
    """Order 1: the error halves with the step, to within its own next order (about 1 / steps)."""
    errors = [(sample(gaussian_velocity, E, n) - SCALE * E).norm().item() for n in (50, 100, 200)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(order - 1) < 0.05 for order in orders)


def test_images_and_precision_are_kept():
    e = torch.randn(3, 1, 4, 4, generator=generator("image"))
    assert sample(lambda z, r, t: z, e, 2).shape == e.shape
    assert sample(lambda z, r, t: z, e, 2).dtype == torch.float32


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match="at least 1 step"):
        sample(to_one_point, E, steps)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2), (ending, 2)])
def test_solvers_converge_at_their_order(solver, order):
    """The flow of Gaussian data takes E to SCALE * E."""
    errors = [
        (solver(lambda z, t: gaussian_velocity(z, t, t), E, n) - SCALE * E).abs().max()
        for n in (40, 80, 160)
    ]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(("solver", "calls"), [(euler, 5), (heun, 10), (ending, 9)])
def test_calls_of_the_network(solver, calls):
    seen = []

    def v(z, t):
        assert t.shape == (len(z),)
        seen.append(t[0].item())
        return z

    solver(v, E, 5)
    assert len(seen) == calls and seen[0] == 1 and min(seen) >= 0


@pytest.mark.parametrize("solver", [euler, heun, ending])
def test_solvers_refuse_no_steps(solver):
    with pytest.raises(ValueError, match="at least 1 step; got 0"):
        solver(lambda z, t: z, E, 0)
