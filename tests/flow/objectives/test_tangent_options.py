"""The tangent's normalisation and warm-up: what sCM and FastGen do, in their own form."""

import math

import pytest
import torch
from helpers.velocities import Net, gradient, of_one_point, point_draws

from vamf.flow.objectives.meanflow import MeanFlowLoss, path_derivative
from vamf.flow.objectives.terms import AdaptiveWeight

NORMALISED = AdaptiveWeight(p=1.0, c=0.1, root=True)


def proxy(z, t):
    """Some velocity that is no network's."""
    return torch.sin(2 * z) * t[:, None]


def terms(u, d, v_hat=proxy, progress=None, **settings):
    return MeanFlowLoss(**settings)(u, d, beta=0.4, v_hat=v_hat, progress=progress)


def normalised(net, d, factor):
    """|u - sg[u + g / (|g| + .1)]|^2 of g = v_cond - u - factor (t - r) du/dt, as in FastGen."""
    z, v_cond, correction = path_derivative(net, d, 0.4, proxy)
    value = net(z, d.r, d.t)
    g = v_cond - value.detach() - factor * correction
    target = value.detach() + g / (g.norm(dim=1, keepdim=True) + 0.1)
    return (value - target).square().sum(1).mean()


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.9])
def test_the_gradient_is_that_of_a_normalised_tangent(progress):
    net, d = Net(), point_draws()
    found = terms(net, d, weight=NORMALISED, tangent_warmup=0.4, progress=progress)
    expected = gradient(normalised(net, d, min(progress / 0.4, 1.0)), net)
    torch.testing.assert_close(gradient(found.loss, net), expected, rtol=1e-12, atol=1e-15)


def test_the_root_of_a_large_error_is_a_pseudo_huber_weight():
    error = torch.tensor([1e8], dtype=torch.float64)
    for p in (0.5, 1.0):
        found = AdaptiveWeight(p=p, c=0.1, root=True)(error)
        expected = AdaptiveWeight(p=p / 2, c=0.1)(error)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)  # c / sqrt(l) = 1e-5


def test_no_gradient_passes_through_the_norm():
    error = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = NORMALISED(error)
    assert not found.requires_grad and found.item() == pytest.approx(10)


def test_a_finished_warm_up_is_none_to_the_bit():
    net, d = Net(), point_draws()
    plain, finished = terms(net, d), terms(net, d, tangent_warmup=0.5, progress=0.5)
    assert torch.equal(plain.loss, finished.loss)
    assert torch.equal(gradient(plain.loss, net), gradient(finished.loss, net))


def test_a_warm_up_begins_as_trajectory_flow_matching():
    net, d = Net(), point_draws()
    found = terms(net, d, tangent_warmup=0.5, progress=0.0)
    z = (1 - d.t[:, None]) * d.x + d.t[:, None] * d.e
    error = (net(z, d.r, d.t) - (d.e - d.x)).square().sum(1).detach()
    torch.testing.assert_close(found.squared_error, error, rtol=1e-14, atol=0)
    assert not found.squared_correction.any()


def test_one_data_point_has_zero_loss_at_its_closed_form():
    """Its u is constant along the path: the factor of du/dt = 0 does not matter."""
    x0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
    d, (exact, v) = point_draws(x=x0), of_one_point(x0)
    settings = {"weight": NORMALISED, "tangent_warmup": 1.0, "progress": 0.3}
    assert terms(exact, d, v, **settings).squared_error.max() < 1e-24


def test_only_a_warm_up_depends_on_progress():
    assert MeanFlowLoss(tangent_warmup=0.1).moves and not MeanFlowLoss().moves
    with pytest.raises(ValueError, match="a MeanFlowLoss that moves over training needs progress"):
        terms(Net(), point_draws(), tangent_warmup=0.1)


def test_bad_settings_are_refused():
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"loss\.tangent_warmup must lie in \[0, 1\]; got"):
            MeanFlowLoss(tangent_warmup=share)
    with pytest.raises(ValueError, match=r"weight\.p must be > 0; got 0"):
        AdaptiveWeight(root=True)
