"""Terminal velocity matching: its definition, closed forms, and what passes a gradient."""

import math

import pytest
import torch
from helpers.velocities import (
    Net,
    gaussian_average,
    gaussian_draws,
    gaussian_velocity,
    gradient,
    of_one_point,
    point_draws,
    uniforms,
    z_scores,
)

from vamf.flow.derivatives import apply_with_tangent
from vamf.flow.duals import dual_mode
from vamf.flow.objectives.terminal_velocity import BoundaryTime, TerminalVelocityLoss
from vamf.flow.objectives.terms import AdaptiveWeight
from vamf.flow.path import interpolate

N, N_EQUAL = 8, 3
STOPPED = TerminalVelocityLoss(stop_derivative=True)


def proxy(z, t):
    """Some velocity that is no network's."""
    return torch.sin(2 * z) * t[:, None]


def refuse(*_):
    raise AssertionError("evaluated")


def terms(u, d, loss=TerminalVelocityLoss(), v_hat=proxy, **given):  # noqa: B008
    given.setdefault("anchor_uniform", uniforms(len(d.x)))
    return loss(u, d, beta=0.0, v_hat=v_hat, **given)


def definition(net, d, s, stop):
    """The squared errors as printed, with du/dr by a central difference that keeps its graph."""
    h, (t, r) = 1e-5, (d.t[:, None], d.r[:, None])
    z, v_cond = (1 - t) * d.x + t * d.e, d.e - d.x
    value = net(z, d.r, d.t)
    du_dr = (net(z, d.r + h, d.t) - net(z, d.r - h, d.t)) / (2 * h)
    du_dr = du_dr.detach() if stop else du_dr
    target = proxy(z - (t - r) * value, d.r).detach()
    terminal = (value - (t - r) * du_dr - target).square().sum(1)
    at_s = (1 - s)[:, None] * d.x + s[:, None] * d.e
    flow_matching = (net(at_s, s, s) - v_cond).square().sum(1)
    return flow_matching + torch.where(torch.arange(len(t)) < d.n_equal, 0.0, terminal)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_loss_and_gradient_are_those_of_the_definition(stop, p):
    net, d, weight = Net(), point_draws(), AdaptiveWeight(p=p)
    found = terms(net, d, TerminalVelocityLoss(stop_derivative=stop, weight=weight))
    expected = definition(net, d, BoundaryTime()(uniforms()), stop)
    # The difference: truncation h^2 / 6 |u'''| and rounding eps / h, both about 1e-10.
    torch.testing.assert_close(found.squared_error, expected.detach(), rtol=1e-8, atol=1e-9)
    mean = (weight(expected) * expected).mean()
    torch.testing.assert_close(gradient(found.loss, net), gradient(mean, net), rtol=1e-7, atol=1e-8)


def test_a_stopped_derivative_changes_the_gradient_and_not_the_loss():
    net, d = Net(), point_draws()
    published, stopped = terms(net, d), terms(net, d, STOPPED)
    torch.testing.assert_close(stopped.loss, published.loss, rtol=1e-12, atol=0)
    one, other = gradient(stopped.loss, net), gradient(published.loss, net)
    assert (one - other).norm() > 0.1 * other.norm()


@pytest.mark.parametrize("loss", [TerminalVelocityLoss(), STOPPED])
def test_one_data_point_has_zero_loss_at_its_closed_form(loss):
    x0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
    d, (exact, v) = point_draws(x=x0), of_one_point(x0)
    assert terms(exact, d, loss, v).loss < 1e-24  # roundings of |e - x| / t <= 100, squared
    wrong = terms(lambda z, r, t: exact(z, r, t) * (1 + t - r)[:, None], d, loss, v)
    assert wrong.squared_error[:N_EQUAL].max() < 1e-24 < 1e-4 < wrong.squared_error[N_EQUAL:].min()


def test_a_step_of_the_gaussian_average_velocity_ends_with_the_velocity_there():
    """The first term is 0 for every sample, with the exact velocity as the proxy."""
    d, uniform = gaussian_draws(64), uniforms(64)
    s = BoundaryTime()(uniform)
    z, v_cond = interpolate(d.x, d.e, s)
    boundary = (gaussian_velocity(z, s) - v_cond).square().sum(1)
    found = terms(gaussian_average, d, STOPPED, gaussian_velocity, anchor_uniform=uniform)
    # u divides differences by t - r >= .01 and du/dr by its square: 1e4 times float64 rounding.
    torch.testing.assert_close(found.squared_error, boundary, rtol=1e-9, atol=1e-20)
    wrong = terms(
        lambda *a: 1.1 * gaussian_average(*a), d, STOPPED, gaussian_velocity, anchor_uniform=uniform
    )
    at_s = (1.1 * gaussian_velocity(z, s) - v_cond).square().sum(1)
    assert (wrong.squared_error - at_s).min() > 1e-8


@pytest.mark.parametrize("loss", [TerminalVelocityLoss(), STOPPED])
def test_the_gaussian_average_velocity_is_stationary(loss):
    """In the mean over samples, within 5 standard errors; 1.1 of it is not."""
    d = gaussian_draws(20_000, n_equal=5000)

    def value(u, part):
        return terms(u, part, loss, gaussian_velocity).loss

    assert z_scores(value, d).abs().max() < 5 and z_scores(value, d, 1.1).abs().max() > 10


def test_the_boundary_time_is_the_authors_logit_normal():
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logit = torch.logit(BoundaryTime()(uniform))
    assert logit.mean().item() == pytest.approx(-0.4, abs=1e-4)
    assert logit.std().item() == pytest.approx(1.0, abs=1e-3)
    assert BoundaryTime()(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert BoundaryTime(mean=1.0)(torch.tensor([0.5])).item() == pytest.approx(
        1 / (1 + math.exp(-1))
    )


def test_without_a_boundary_time_flow_matching_is_at_t():
    net, d = Net(), point_draws(n_equal=N)
    z, v_cond = interpolate(d.x, d.e, d.t)
    found = terms(net, d, TerminalVelocityLoss(boundary=None), refuse, anchor_uniform=None)
    error = (net(z, d.t, d.t) - v_cond).square().sum(1).detach()
    torch.testing.assert_close(found.squared_error, error, rtol=1e-12, atol=0)


def test_a_given_velocity_is_the_target_of_flow_matching():
    """That of guidance: without its last term, which ``cond_weight`` adds."""
    net, d = Net(), point_draws(n_equal=N)
    z, _ = interpolate(d.x, d.e, d.t)
    velocity, value = torch.sin(3 * z), net(z, d.t, d.t).detach()
    given = {"velocity": velocity, "cond_weight": torch.full_like(d.t, 0.5)}
    found = terms(net, d, TerminalVelocityLoss(boundary=None), refuse, **given)
    torch.testing.assert_close(
        found.squared_error, (value - velocity - 0.5 * value).square().sum(1)
    )


def test_equal_times_among_the_other_samples_have_no_first_term():
    net, d = Net(), point_draws(n_equal=0)
    clipped = d._replace(r=torch.cat([d.r[:5], d.t[5:]]))
    equal = d._replace(r=d.t, n_equal=N)
    found, none = terms(net, clipped).squared_error, terms(net, equal).squared_error
    assert torch.equal(found[5:], none[5:]) and (found[:5] > none[:5]).all()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(size):
    net, d, uniform = Net(), point_draws(), uniforms()
    whole, mean = gradient(terms(net, d).loss, net), 0.0
    for part, numbers in zip(d.parts(size), uniform.split(size), strict=True):
        loss = terms(net, part, anchor_uniform=numbers).loss
        mean = mean + len(part.x) / N * gradient(loss, net)
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=1e-15)


def carried(net):
    """The network, taking duals as those of vamf do."""
    return lambda *args: apply_with_tangent(net, *args)


def test_duals_carry_the_stopped_derivative():
    net, d = Net(), point_draws()
    expected = terms(net, d, STOPPED)
    with dual_mode():
        found = terms(carried(net), d, STOPPED)
    torch.testing.assert_close(found.squared_error, expected.squared_error, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.squared_correction, expected.squared_correction)
    torch.testing.assert_close(
        gradient(found.loss, net), gradient(expected.loss, net), rtol=1e-10, atol=1e-14
    )
    with dual_mode(), pytest.raises(ValueError, match="duals have no graph of du/dr"):
        terms(carried(net), d)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"loss\.boundary\.std must be positive; got 0"):
        BoundaryTime(std=0.0)
    with pytest.raises(ValueError, match="a boundary time needs anchor_uniform"):
        terms(Net(), point_draws(), anchor_uniform=None)
