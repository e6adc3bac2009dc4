"""Semigroup consistency: its definition, closed forms, and MeanFlow as its limit."""

from itertools import pairwise

import pytest
import torch
from helpers.velocities import (
    Net,
    gaussian_average,
    gaussian_draws,
    gradient,
    of_one_point,
    point_draws,
    uniforms,
    z_scores,
)

from vamf.flow.duals import dual_mode
from vamf.flow.objectives.meanflow import path_derivative
from vamf.flow.objectives.semigroup import SemigroupLoss, two_steps
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.path import interpolate
from vamf.flow.tangents import boundary_velocity

N, N_EQUAL = 8, 3


def refuse(*_):
    raise AssertionError("evaluated")


def terms(u, d, uniform=None, loss=SemigroupLoss(), **given):  # noqa: B008
    uniform = uniforms(len(d.x)) if uniform is None else uniform
    return loss(u, d, beta=0.0, v_hat=refuse, anchor_uniform=uniform, **given)


def definition(net, d, m):
    """The squared errors as they are printed: both steps over t - r, sample by sample."""
    errors = []
    for k, (x, e, r, t) in enumerate(zip(*d[:4], strict=True)):
        z = ((1 - t) * x + t * e)[None]
        r, t, own = r[None], t[None], m[k][None]
        target = (e - x)[None]
        if k >= d.n_equal:
            with torch.no_grad():
                first = net(z, own, t)
                target = ((t - own) * first + (own - r) * net(z - (t - own) * first, r, own)) / (
                    t - r
                )
        errors.append((net(z, r, t) - target).square().sum())
    return torch.stack(errors)


@pytest.mark.parametrize("split", ["uniform", "middle"])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_loss_and_gradient_are_those_of_the_definition(split, p):
    net, d, loss = Net(), point_draws(), SemigroupLoss(split=split, weight=AdaptiveWeight(p=p))
    share = uniforms() if split == "uniform" else 0.5
    expected = definition(net, d, d.t - share * (d.t - d.r))
    weight = (expected.detach() + 0.01) ** -p
    found = terms(net, d, loss=loss)
    torch.testing.assert_close(found.squared_error, expected.detach(), rtol=1e-12, atol=1e-18)
    torch.testing.assert_close(
        gradient(found.loss, net), gradient((weight * expected).mean(), net), rtol=1e-10, atol=1e-13
    )
    assert not found.squared_correction.any() and found.n_equal == N_EQUAL


def test_one_data_point_has_zero_loss_at_its_closed_form():
    x0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
    d, (exact, _) = point_draws(x=x0), of_one_point(x0)
    assert terms(exact, d).loss < 1e-24  # roundings of |e - x| / t <= 100, squared
    wrong = terms(lambda z, r, t: exact(z, r, t) * (1 + t - r)[:, None], d)
    assert wrong.squared_error[:N_EQUAL].max() < 1e-24 < 1e-4 < wrong.squared_error[N_EQUAL:].min()


def test_the_average_velocity_of_gaussian_data_composes():
    """Where r < t the loss is 0 for every sample, not in the mean alone: no data enter there."""
    d = gaussian_draws(64, n_equal=16)
    found = terms(gaussian_average, d)
    # u divides differences by gaps down to 1e-3 here: 1e3 times float64 rounding, squared.
    assert found.squared_error[16:].max() < 1e-22
    assert terms(lambda *a: 1.1 * gaussian_average(*a), d).squared_error[16:].max() > 1e-4


def test_the_gaussian_average_velocity_is_stationary():
    """Where r = t, in the mean over samples, within 5 standard errors; 1.1 of it is not."""
    d = gaussian_draws(20_000, n_equal=20_000)

    def loss(u, part):
        return terms(u, part).loss

    assert z_scores(loss, d).abs().max() < 5 and z_scores(loss, d, 1.1).abs().max() > 10


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_split_at_an_end_is_the_network_itself_to_the_bit(share):
    net, d = Net(), point_draws(n_equal=0)
    z, _ = interpolate(d.x, d.e, d.t)
    whole = torch.full_like(d.t, share)
    assert torch.equal(two_steps(net, z, d.r, d.t, whole), net(z, d.r, d.t))
    assert not terms(net, d, whole).squared_error.any()


def test_its_limit_is_the_residual_of_mean_flow_without_noise():
    """(target - u) / share goes to u(z, t, t) - (t - r) du/dt - u along u(z, t, t), at order 1."""
    net, d = Net(), point_draws(n_equal=0)
    own = boundary_velocity(net)
    z, _, correction = path_derivative(net, d, 1.0, own)
    with torch.no_grad():
        value = net(z, d.r, d.t)
        expected = own(z, d.t) - correction - value
        errors = [
            ((two_steps(net, z, d.r, d.t, torch.full_like(d.t, h)) - value) / h - expected).norm()
            for h in (1e-2, 1e-3, 1e-4)
        ]
    assert errors[0] < 0.1 * expected.norm()
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(10, rel=0.05)


def test_equal_times_among_the_other_samples_are_flow_matching_too():
    """A clipped distribution of times has them, which the count of equal times does not know."""
    net, d = Net(), point_draws(n_equal=0)
    clipped = d._replace(r=torch.cat([d.r[:5], d.t[5:]]))
    z, v_cond = interpolate(d.x, d.e, d.t)
    error = (net(z, d.t, d.t) - v_cond).square().sum(1)
    found = terms(net, clipped).squared_error
    torch.testing.assert_close(found[5:], error[5:].detach(), rtol=1e-12, atol=0)
    assert (found[:5] - error[:5]).abs().min() > 1e-6


def test_a_given_velocity_is_the_target_at_equal_times():
    """That of guidance: without its last term, which ``cond_weight`` adds, where r = t."""
    net, d = Net(), point_draws()
    z, _ = interpolate(d.x, d.e, d.t)
    velocity, weight = torch.sin(3 * z), torch.tensor([0.5] * N_EQUAL + [0.0] * (N - N_EQUAL))
    found = terms(net, d, velocity=velocity, cond_weight=weight.double())
    value = net(z, d.t, d.t).detach()
    expected = (value - velocity - 0.5 * value).square().sum(1)
    torch.testing.assert_close(found.squared_error[:N_EQUAL], expected[:N_EQUAL])
    assert torch.equal(found.squared_error[N_EQUAL:], terms(net, d).squared_error[N_EQUAL:])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(size):
    net, d, uniform = Net(), point_draws(), uniforms()
    whole, mean = gradient(terms(net, d, uniform).loss, net), 0.0
    for part, numbers in zip(d.parts(size), uniform.split(size), strict=True):
        mean = mean + len(part.x) / N * gradient(terms(net, part, numbers).loss, net)
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n_equal", [0, N_EQUAL, N])
def test_only_samples_with_two_times_are_evaluated_again(n_equal):
    calls = []

    def u(z, r, t):
        calls.append(len(z))
        return z * (1 + t - r)[:, None]

    terms(u, point_draws(n_equal=n_equal))
    assert calls == [N, *([N - n_equal] * 2 if n_equal < N else [])]


def test_no_tangent_is_carried():
    net, d = Net(), point_draws()
    with dual_mode():
        carried = terms(net, d)
    assert torch.equal(carried.squared_error, terms(net, d).squared_error)


def test_a_uniform_split_without_its_draws_is_refused():
    with pytest.raises(ValueError, match="a uniform split needs anchor_uniform"):
        SemigroupLoss()(Net(), point_draws(), beta=0.0, v_hat=refuse)
