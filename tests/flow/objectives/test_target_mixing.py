"""The proxy in MeanFlow's regression target: gamma."""

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
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight

N, N_EQUAL = 8, 3
BETAS = (0.0, 0.4, 1.0)
WEIGHTED = AdaptiveWeight(p=0.5)


def proxy(z, t):
    """Some velocity that is no network's."""
    return torch.sin(2 * z) * t[:, None]


def terms(gamma, u, d, beta=0.4, v_hat=proxy, **given):
    return MeanFlowLoss(gamma=gamma, weight=WEIGHTED)(u, d, beta=beta, v_hat=v_hat, **given)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_loss_and_gradient_are_those_of_the_definition(gamma, beta):
    """A central difference for du/dt: truncation and rounding of order 1e-10."""
    net, d, h = Net(), point_draws(), 1e-5
    t, r = d.t[:, None], d.r[:, None]
    z, v_cond = (1 - t) * d.x + t * d.e, d.e - d.x
    v_hat = proxy(z, d.t)
    v = (1 - beta) * v_cond + beta * v_hat
    with torch.no_grad():
        du_dt = (net(z + h * v, d.r, d.t + h) - net(z - h * v, d.r, d.t - h)) / (2 * h)
    target = (1 - gamma) * v_cond + gamma * v_hat - (t - r) * du_dt
    error = (net(z, d.r, d.t) - target).square().sum(1)
    found = terms(gamma, net, d, beta)
    torch.testing.assert_close(found.squared_error, error.detach(), rtol=1e-8, atol=1e-9)
    expected = gradient((error * (error.detach() + 0.01) ** -0.5).mean(), net)
    torch.testing.assert_close(gradient(found.loss, net), expected, rtol=1e-7, atol=1e-8)


def test_gamma_0_does_not_evaluate_the_proxy():
    def refuse(*_):
        raise AssertionError("evaluated")

    net, d = Net(), point_draws()
    found = terms(0.0, net, d, beta=0.0, v_hat=refuse)
    plain = MeanFlowLoss(weight=WEIGHTED)(net, d, beta=0.0, v_hat=refuse)
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(gradient(found.loss, net), gradient(plain.loss, net))


def test_gamma_and_beta_of_1_have_no_noise_left():
    """Distillation: other data with the same point z give the same error, to rounding."""
    net, d = Net(), point_draws()
    t, shift = d.t[:, None], torch.tensor([0.7, -0.4], dtype=torch.float64)
    other = d._replace(x=d.x + t * shift, e=d.e - (1 - t) * shift)
    errors = [terms(1.0, net, draws, beta=1.0).squared_error for draws in (d, other)]
    torch.testing.assert_close(*errors, rtol=1e-12, atol=1e-14)
    noisy = [terms(0.9, net, draws, beta=1.0).squared_error for draws in (d, other)]
    assert (noisy[0] - noisy[1]).abs().min() > 1e-4


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_one_data_point_has_zero_loss_at_its_closed_form(gamma):
    x0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
    d, (exact, v) = point_draws(x=x0), of_one_point(x0)
    assert terms(gamma, exact, d, v_hat=v).squared_error.max() < 1e-24
    wrong = terms(gamma, lambda z, r, t: exact(z, r, t) * (1 + t - r)[:, None], d, v_hat=v)
    assert wrong.squared_error[N_EQUAL:].min() > 1e-4


def test_a_flow_matching_run_is_distilled_without_a_residual():
    """beta = gamma = 1 with the exact velocity: the average velocity has loss 0 at each sample."""
    d = gaussian_draws(64, n_equal=16)
    found = terms(1.0, gaussian_average, d, beta=1.0, v_hat=gaussian_velocity)
    # u divides differences by t - r >= .01: 100 times float64 rounding, squared.
    assert found.squared_error.max() < 1e-20


@pytest.mark.parametrize("beta", BETAS)
def test_the_gaussian_average_velocity_is_stationary(beta):
    """In the mean over samples, within 5 standard errors; 1.1 of it is not."""
    d = gaussian_draws(20_000)

    def loss(u, part):
        return MeanFlowLoss(gamma=0.6)(u, part, beta=beta, v_hat=gaussian_velocity).loss

    assert z_scores(loss, d).abs().max() < 5 and z_scores(loss, d, 1.1).abs().max() > 10


def test_the_proxy_is_evaluated_once():
    calls = []

    def counted(z, t):
        calls.append(len(z))
        return proxy(z, t)

    terms(0.5, Net(), point_draws(), v_hat=counted)
    assert calls == [N]


def test_the_anchor_has_the_mixed_target_too():
    """gamma = 1: |u(z, t - gap, t) - v_hat|^2."""
    net, d, uniform = Net(), point_draws(), uniforms()
    loss = MeanFlowLoss(gamma=1.0, anchor=Anchor(weight=0.3, max_gap=0.5))
    given = {"beta": 0.4, "v_hat": proxy}
    found = loss(net, d, anchor_uniform=uniform, **given)
    z = (1 - d.t[:, None]) * d.x + d.t[:, None] * d.e
    residual = net(z, (d.t - 0.5 * uniform).clamp_min(0), d.t) - proxy(z, d.t)
    plain = MeanFlowLoss(gamma=1.0)(net, d, **given).loss
    expected = plain + 0.3 * residual.square().sum(1).mean()
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


def test_a_given_velocity_is_mixed_with_its_deferred_term():
    net, d = Net(), point_draws(n_equal=N)
    z = (1 - d.t[:, None]) * d.x + d.t[:, None] * d.e
    velocity, value = torch.cos(z), net(z, d.t, d.t).detach()
    weight = torch.full_like(d.t, 0.5)
    found = terms(0.3, net, d, velocity=velocity, cond_weight=weight)
    target = 0.7 * (velocity + 0.5 * value) + 0.3 * proxy(z, d.t)
    torch.testing.assert_close(found.squared_error, (value - target).square().sum(1))


def test_duals_give_the_same():
    net, d = Net(), point_draws()
    expected = terms(0.3, net, d)
    with dual_mode():
        found = terms(0.3, lambda *args: apply_with_tangent(net, *args), d)
    torch.testing.assert_close(found.squared_error, expected.squared_error, rtol=1e-12, atol=0)


def test_alpha_flow_at_alpha_0_has_no_gamma():
    net, d = Net(), point_draws()
    loss = AlphaFlowLoss(weight=WEIGHTED, alpha=AlphaSchedule(value=0.0))
    found = loss(net, d, beta=0.4, v_hat=proxy, progress=0.0)
    assert torch.equal(found.loss, terms(0.0, net, d).loss)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_bad_settings_are_refused(gamma):
    with pytest.raises(ValueError, match=r"loss\.gamma must lie in \[0, 1\]; got"):
        MeanFlowLoss(gamma=gamma)
