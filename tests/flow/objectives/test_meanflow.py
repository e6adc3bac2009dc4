"""The Mean Flow loss against independently written ones, closed forms and its own linearity."""

import math

import pytest
import torch
from torch import nn

from vamf.flow.derivatives import apply_with_tangent, total_derivative
from vamf.flow.duals import dual_mode
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss, path_derivative, path_pass
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, squared_norm
from vamf.flow.path import interpolate
from vamf.flow.tangents import boundary_velocity
from vamf.rng import generator
from vamf.typing import expand_like

LOSS = MeanFlowLoss()
BETAS = (0.0, 0.25, 0.7, 1.0)


class Net(nn.Module):
    """u(z, r, t) with curvature in all of its arguments, in float64."""

    def __init__(self, shape=(2,)):
        super().__init__()
        g, dim = generator("net", *shape), math.prod(shape)
        self.w1 = nn.Parameter(torch.randn(dim + 2, 16, generator=g).double() / 2)
        self.w2 = nn.Parameter(torch.randn(16, dim, generator=g).double() / 4)

    def forward(self, z, r, t):
        h = torch.cat([z.flatten(1), r[:, None], t[:, None]], 1) @ self.w1
        return (torch.tanh(h) @ self.w2).reshape(z.shape)


def draws(shape=(2,), n=8, n_equal=0, x=None):
    g = generator("draws", n, *shape)
    data, e = torch.randn(2, n, *shape, generator=g, dtype=torch.float64)
    times = 0.05 + 0.9 * torch.rand(2, n, generator=g, dtype=torch.float64)
    t = times.amax(0)
    r = torch.cat([t[:n_equal], times.amin(0)[n_equal:]])
    return Draws(data if x is None else x.expand_as(data), e, r, t, n_equal)


def gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()))


def proxy(z, t):
    """Some velocity that is no network's."""
    return torch.sin(2 * z) * expand_like(t, z)


def refuse(z, t):
    raise AssertionError("the proxy was evaluated")


def mean_flow_loss(u, x, e, r, t):
    """Algorithm 1 of arXiv 2505.13447 as it is printed there: one jvp for u and du/dt."""
    z = (1 - t[:, None]) * x + t[:, None] * e
    v = e - x
    value, du_dt = torch.func.jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    target = v - (t - r)[:, None] * du_dt
    return (value - target.detach()).pow(2).sum(1).mean()


@pytest.mark.parametrize(
    "v_hat", [refuse, lambda z, t: torch.full_like(z, math.nan)], ids=["raises", "NaN"]
)
def test_beta_0_is_mean_flow_bit_for_bit(v_hat):
    net, d = Net(), draws()
    loss = LOSS(net, d, beta=0.0, v_hat=v_hat).loss
    expected = mean_flow_loss(net, d.x, d.e, d.r, d.t)
    assert torch.equal(loss, expected)
    pairs = zip(gradients(loss, net), gradients(expected, net), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_beta_1_with_the_online_boundary_has_the_tangent_of_improved_mean_flow():
    """arXiv 2512.02012: V = u + (t - r) sg[jvp(u; u(z, t, t), 0, 1)] regresses on e - x."""
    net, d = Net(), draws()
    z, v_cond = interpolate(d.x, d.e, d.t)
    tangent = net(z, d.t, d.t).detach()
    h = 1e-5  # central differences in place of the jvp: truncation and rounding of order 1e-9
    with torch.no_grad():
        ahead = net(z + h * tangent, d.r, d.t + h)
        behind = net(z - h * tangent, d.r, d.t - h)
    compound = net(z, d.r, d.t) + (d.t - d.r)[:, None] * (ahead - behind) / (2 * h)
    expected = (compound - v_cond).pow(2).sum(1).mean()
    loss = LOSS(net, d, beta=1.0, v_hat=boundary_velocity(net)).loss
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    for a, b in zip(gradients(loss, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_residual_is_affine_in_beta(shape):
    net, d = Net(shape), draws(shape, n_equal=2)
    _, _, at_0 = path_derivative(net, d, 0.0, proxy)
    _, _, at_1 = path_derivative(net, d, 1.0, proxy)
    assert not torch.allclose(at_0[2:], at_1[2:], rtol=0.1)
    for beta in (0.1, 0.5, 0.9):
        _, _, between = path_derivative(net, d, beta, proxy)
        expected = (1 - beta) * at_0 + beta * at_1
        torch.testing.assert_close(between, expected, rtol=1e-12, atol=1e-13)  # rounding


def test_squared_error_is_a_quadratic_in_beta():
    """Its third difference over equally spaced betas vanishes, the second does not."""
    net, d = Net(), draws()
    at = [LOSS(net, d, beta=b, v_hat=proxy).squared_error for b in (0, 1 / 3, 2 / 3, 1)]
    second, third = at[2] - 2 * at[1] + at[0], at[3] - 3 * at[2] + 3 * at[1] - at[0]
    assert second.min() > 1e-6
    torch.testing.assert_close(third, torch.zeros_like(third), rtol=0, atol=1e-12)  # rounding


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_gradient_is_that_of_a_constant_target(beta, p):
    """Neither the jvp, nor the proxy, nor the weight passes a gradient."""
    net, d = Net(), draws(n_equal=2)
    loss = MeanFlowLoss(weight=AdaptiveWeight(p=p))(net, d, beta=beta, v_hat=net_proxy(net)).loss
    with torch.no_grad():
        z, v_cond = interpolate(d.x, d.e, d.t)
        v_tan = (1 - beta) * v_cond + beta * net(z, d.t, d.t)
        _, du_dt = total_derivative(net, z, d.r, d.t, v_tan)
        target = v_cond - (d.t - d.r)[:, None] * du_dt
        weight = (squared_norm(net(z, d.r, d.t) - target) + 0.01) ** -p
    expected = (weight * squared_norm(net(z, d.r, d.t) - target)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)  # float64 rounding
    for a, b in zip(gradients(loss, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def net_proxy(net):
    """A proxy that carries gradients, if the loss lets it."""
    return lambda z, t: net(z, t, t)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_times_are_flow_matching(beta):
    """At r = t the squared error is |u(z, t, t) - v_cond|^2, bit for bit, whatever the tangent."""
    net, d = Net(), draws(n=6, n_equal=6)
    terms = LOSS(net, d, beta=beta, v_hat=refuse)
    z, v_cond = interpolate(d.x, d.e, d.t)
    expected = (net(z, d.t, d.t) - v_cond).pow(2).sum(1)
    assert torch.equal(terms.squared_error, expected)
    pairs = zip(gradients(terms.loss, net), gradients(expected.mean(), net), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("n_equal", [1, 3, 7])
def test_split_batch_equals_the_whole_batch_through_the_jvp(beta, n_equal):
    """With r = t the factor t - r is 0, so that the jvp of a smooth u changes nothing there."""
    net, d = Net(), draws(n_equal=n_equal)
    split = LOSS(net, d, beta=beta, v_hat=proxy)
    whole = LOSS(net, d._replace(n_equal=0), beta=beta, v_hat=proxy)
    # The same sums over batches of other sizes: float64 rounding.
    torch.testing.assert_close(split.squared_error, whole.squared_error, rtol=1e-12, atol=1e-14)
    for a, b in zip(gradients(split.loss, net), gradients(whole.loss, net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_derivative_that_is_infinite_at_equal_times_does_no_harm():
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def u(z, r, t):
        return scale * z * (1 + (t - r).sqrt())[:, None]

    d = draws(n_equal=3)
    terms = LOSS(u, d, beta=0.5, v_hat=proxy)
    assert terms.squared_error.isfinite().all()
    z, v_cond = interpolate(d.x, d.e, d.t)
    expected = squared_norm(scale * z - v_cond)[:3]
    assert torch.equal(terms.squared_error[:3], expected)
    # Through the jvp they are what they would have been: 0 times infinity.
    whole = LOSS(u, d._replace(n_equal=0), beta=0.5, v_hat=proxy)
    assert whole.squared_error[:3].isnan().all() and whole.squared_error[3:].isfinite().all()


@pytest.mark.parametrize("n_equal", [0, 3, 8])
def test_samples_with_equal_times_never_enter_the_jvp(n_equal):
    seen = []

    def u(z, r, t):
        seen.append(len(z))
        return z * (1 + t - r)[:, None]

    path_derivative(u, draws(n_equal=n_equal), 0.0, refuse)
    assert seen == ([8 - n_equal] if n_equal < 8 else [])


def carried(u):
    """A function of tensors as one of duals."""
    return lambda z, r, t: apply_with_tangent(u, z, r, t)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("n_equal", [0, 1, 3, 5, 8])
def test_one_pass_gives_what_two_give(beta, n_equal):
    net, d = Net(), draws(n_equal=n_equal)
    with dual_mode():
        z, v_cond, correction, value = path_pass(carried(net), d, beta, proxy)
    expected = path_derivative(net, d, beta, proxy)
    # The same sums over batches of other sizes: float64 rounding.
    for a, b in zip((z, v_cond, correction), expected, strict=True):
        assert not a.requires_grad
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert (correction[:n_equal] == 0).all()
    separate = net(z, d.r, d.t)
    torch.testing.assert_close(value, separate, rtol=1e-12, atol=1e-14)
    pairs = zip(
        gradients(value.sin().sum(), net), gradients(separate.sin().sum(), net), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n_equal", [3, 5])
def test_one_pass_takes_no_harm_from_an_infinite_derivative_at_equal_times(n_equal):
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def u(z, r, t):
        return scale * z * (1 + (t - r).sqrt())[:, None]

    d = draws(n_equal=n_equal)
    with dual_mode():
        z, _, correction, value = path_pass(carried(u), d, 0.5, proxy)
    assert correction.isfinite().all() and torch.equal(value[:n_equal], scale * z[:n_equal])
    (slope,) = torch.autograd.grad(value.sum(), scale)
    torch.testing.assert_close(slope, value.sum().detach() / scale.detach())


@pytest.mark.parametrize("beta", BETAS)
def test_one_data_point_has_zero_loss_at_its_closed_form(beta):
    """For the data set {x0} the path is straight: u(z, r, t) = v(z, t) = (z - x0) / t."""
    x0 = torch.tensor([0.7, -1.3], dtype=torch.float64)
    d = draws(n_equal=2, x=x0)

    def v(z, t):
        return (z - x0) / expand_like(t, z)

    def loss(u):
        return LOSS(u, d, beta=beta, v_hat=v)

    # Residuals are roundings of numbers of order |e - x0| / t <= 100: below 1e-12, squared.
    assert loss(lambda z, r, t: v(z, t)).loss < 1e-24
    # A factor that is 1 only at r = t: the derivative is what tells it apart.
    wrong = loss(lambda z, r, t: v(z, t) * expand_like(1 + (t - r), z))
    assert wrong.squared_error[:2].max() < 1e-24 and wrong.squared_error[2:].min() > 1e-4


SPREAD = torch.tensor([0.5, 2.0], dtype=torch.float64)
"""Standard deviations of the Gaussian data, one for each axis."""


def sigma(t):
    """The standard deviations of z at time t, (batch, 2)."""
    return ((1 - t[:, None]).square() * SPREAD**2 + t[:, None].square()).sqrt()


def gaussian_velocity(z, t):
    """v(z, t) = E[e - x | z] = z sigma'(t) / sigma(t)."""
    return z * (t[:, None] - (1 - t[:, None]) * SPREAD**2) / sigma(t).square()


def gaussian_average(z, r, t):
    """The mean of v along its own flow, which takes z to z sigma(r) / sigma(t)."""
    return z * (1 - sigma(r) / sigma(t)) / (t - r)[:, None]


def gaussian_draws(n):
    d = draws(n=n)
    return d._replace(x=SPREAD * d.x, r=d.r.clamp_max(d.t - 0.01))


def test_gaussian_average_velocity_satisfies_the_identity():
    """u + (t - r) du/dt = v along the marginal velocity: beta = 1 with the exact proxy."""
    d = gaussian_draws(64)
    z, _, correction = path_derivative(gaussian_average, d, 1.0, gaussian_velocity)
    compound = gaussian_average(z, d.r, d.t) + correction
    # u divides a difference by t - r >= .01: 100 times float64 rounding.
    torch.testing.assert_close(compound, gaussian_velocity(z, d.t), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_gaussian_average_velocity_has_zero_mean_gradient(beta):
    """At the solution the semi-gradient is noise: its mean lies within 5 standard errors of 0.

    For Gaussian data du/dz does not depend on z, hence the mixed tangent is unbiased at every
    beta. Six directions of parameters; a wrong u shows at the same time that the test has power.
    """
    d = gaussian_draws(40_000)
    z, v_cond, correction = path_derivative(gaussian_average, d, beta, gaussian_velocity)
    features = torch.cat([z, z * d.t[:, None], torch.sin(z) * (1 + d.r[:, None])], 1)

    def z_scores(average):
        residual = average + correction - v_cond
        per_sample = 2 * features * residual.repeat(1, 3)
        return per_sample.mean(0) / per_sample.std(0) * len(z) ** 0.5

    average = gaussian_average(z, d.r, d.t)
    assert z_scores(average).abs().max() < 5
    assert z_scores(1.1 * average).abs().max() > 10


def test_squared_norm_sums_over_all_data_axes():
    a = torch.arange(12.0).reshape(2, 1, 2, 3)
    assert squared_norm(a).tolist() == [55.0, 451.0]  # 0 + 1 + ... + 25 and 36 + ... + 121


def test_adaptive_weight_of_power_0_is_1():
    error = torch.tensor([0.0, 0.1, 7.0])
    assert torch.equal(AdaptiveWeight(p=0)(error), torch.ones(3))


def test_adaptive_weight_of_power_1_normalises():
    error = torch.tensor([0.1, 7.0, 1e6], dtype=torch.float64)
    weight = AdaptiveWeight(p=1, c=1e-3)
    torch.testing.assert_close(weight(error) * error, error / (error + 1e-3))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0])
def test_adaptive_weight_passes_no_gradient(p):
    error = torch.tensor([0.1, 7.0], dtype=torch.float64, requires_grad=True)
    weight = AdaptiveWeight(p=p, c=0.01)(error)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, (error.detach() + 0.01) ** -p)


def test_loss_is_the_mean_of_weighted_errors():
    net, d = Net(), draws(n_equal=2)
    terms = MeanFlowLoss(weight=AdaptiveWeight(p=0.5, c=0.1))(net, d, beta=0.5, v_hat=proxy)
    plain = LOSS(net, d, beta=0.5, v_hat=proxy)
    assert not terms.squared_error.requires_grad and terms.squared_error.shape == (8,)
    assert torch.equal(terms.squared_error, plain.squared_error)  # unweighted
    error = plain.squared_error
    torch.testing.assert_close(terms.loss, (error / (error + 0.1).sqrt()).mean())


ANCHOR = Anchor(weight=0.3, min_gap=0.1, max_gap=0.5)


def test_anchor_in_closed_form():
    """u = r makes the anchor weight * |r - v_cond|^2 with r = max(t - gap, 0)."""
    x, e = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[0.0, 4.0]] * 3)
    t, uniform = torch.tensor([0.9, 0.9, 0.2]), torch.tensor([0.0, 1.0, 0.5])
    r = torch.tensor([0.8, 0.4, 0.0])  # gaps .1, .5 and .3, the last one clamped
    seen = []

    def u(z, r, t):
        seen.append((z, r, t))
        return expand_like(r, z).expand_as(z)

    loss = ANCHOR(u, Draws(x, e, t, t), uniform)
    expected = 0.3 * ((r + 1) ** 2 + (r - 2) ** 2)  # v_cond = (-1, 2)
    torch.testing.assert_close(loss, expected)
    ((z, seen_r, seen_t),) = seen
    torch.testing.assert_close(z, (1 - t)[:, None] * x + t[:, None] * e)
    torch.testing.assert_close(seen_r, r)
    assert torch.equal(seen_t, t) and seen_r.min() == 0


def test_anchor_is_added_unweighted():
    net, d, uniform = Net(), draws(n_equal=2), torch.rand(8, generator=generator("anchor")).double()
    weight = AdaptiveWeight(p=1)
    without = MeanFlowLoss(weight=weight)(net, d, beta=0.5, v_hat=proxy)
    with_anchor = MeanFlowLoss(weight=weight, anchor=ANCHOR)(
        net, d, beta=0.5, v_hat=proxy, anchor_uniform=uniform
    )
    expected = without.loss + ANCHOR(net, d, uniform).mean()
    torch.testing.assert_close(with_anchor.loss, expected, rtol=1e-14, atol=0)  # rounding
    assert torch.equal(with_anchor.squared_error, without.squared_error)
    anchor_alone = gradients(ANCHOR(net, d, uniform).mean(), net)
    parts = zip(
        gradients(with_anchor.loss, net), gradients(without.loss, net), anchor_alone, strict=True
    )
    for total, a, b in parts:
        torch.testing.assert_close(total, a + b, rtol=1e-12, atol=1e-14)


def test_anchor_without_its_draws_is_refused():
    with pytest.raises(ValueError, match="needs anchor_uniform"):
        MeanFlowLoss(anchor=ANCHOR)(Net(), draws(), beta=0.0, v_hat=refuse)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (AdaptiveWeight, {"p": -0.1}),
        (AdaptiveWeight, {"p": math.nan}),
        (AdaptiveWeight, {"c": 0.0}),
        (AdaptiveWeight, {"c": math.nan}),
        (Anchor, {"weight": 0.0}),
        (Anchor, {"weight": math.nan}),
        (Anchor, {"min_gap": -0.1}),
        (Anchor, {"min_gap": 0.2, "max_gap": 0.1}),
        (Anchor, {"max_gap": 1.1}),
        (Anchor, {"max_gap": math.nan}),
    ],
)
def test_bad_settings_are_refused(kind, settings):
    with pytest.raises(ValueError, match=r"weight|gap"):
        kind(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight": AdaptiveWeight(p=0.0, c=1e-6)},
        {"weight": AdaptiveWeight(p=0.5, c=1e-6)},
        {"anchor": Anchor(weight=0.01, min_gap=0.0, max_gap=0.0)},
        {"anchor": Anchor(min_gap=0.2, max_gap=0.2)},
        {"anchor": Anchor(min_gap=1.0, max_gap=1.0)},
    ],
)
def test_limits_themselves_are_allowed(settings):
    d = draws()
    uniform = torch.linspace(0, 1, len(d.x), dtype=torch.float64)
    terms = MeanFlowLoss(**settings)(Net(), d, beta=0.0, v_hat=refuse, anchor_uniform=uniform)
    assert terms.loss.isfinite() and terms.loss > 0
