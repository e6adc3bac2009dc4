"""alpha-Flow: its definition, its two ends, and its schedule."""

import math

import pytest
import torch

from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws
from vamf.flow.trace import TraceWeight, draw_signs
from vamf.rng import generator

N, N_EQUAL = 8, 3
WEIGHTED = AdaptiveWeight(p=0.5)


class Net(torch.nn.Module):
    """u(z, r, t) with curvature in all of its arguments, in float64."""

    def __init__(self):
        super().__init__()
        g = generator("alpha net")
        self.w1 = torch.nn.Parameter(torch.randn(4, 16, generator=g).double() / 2)
        self.w2 = torch.nn.Parameter(torch.randn(16, 2, generator=g).double() / 4)

    def forward(self, z, r, t):
        return torch.tanh(torch.cat([z, r[:, None], t[:, None]], 1) @ self.w1) @ self.w2


def draws(n_equal=N_EQUAL):
    g = generator("alpha draws")
    x, e = torch.randn(2, N, 2, generator=g, dtype=torch.float64)
    times = 0.05 + 0.9 * torch.rand(2, N, generator=g, dtype=torch.float64)
    t = times.amax(0)
    return Draws(x, e, torch.cat([t[:n_equal], times.amin(0)[n_equal:]]), t, n_equal)


def proxy(z, t):
    return torch.sin(2 * z) * t[:, None]


def refuse(*_):
    raise AssertionError("evaluated")


def terms(alpha, net, d=None, beta=0.0, v_hat=proxy, weight=WEIGHTED):
    loss = MeanFlowLoss(weight=weight)
    if alpha is not None:
        loss = AlphaFlowLoss(weight=weight, alpha=AlphaSchedule(value=alpha))
    return loss(net, d or draws(), beta=beta, v_hat=v_hat, progress=0.5)


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def definition(alpha, net, d, beta):
    """L_alpha as it is printed (arXiv 2510.20771), with the mixed tangent on the way to z_s."""
    t, r = d.t[:, None], d.r[:, None]
    z, v_cond = (1 - t) * d.x + t * d.e, d.e - d.x
    v_tan = (1 - beta) * v_cond + beta * proxy(z, d.t)
    s = alpha * r + (1 - alpha) * t
    with torch.no_grad():
        target = alpha * v_cond + (1 - alpha) * net(z - (t - s) * v_tan, d.r, s[:, 0])
    error = (net(z, d.r, d.t) - target).square().sum(1)
    interior = torch.arange(N) >= d.n_equal
    return torch.where(interior, error / alpha, (net(z, d.r, d.t) - v_cond).square().sum(1))


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.9, 1.0])
def test_gradient_is_that_of_the_definition(alpha, beta):
    net, d = Net(), draws()
    plain = terms(alpha, net, d, beta, weight=AdaptiveWeight())
    expected = definition(alpha, net, d, beta)
    # Rounding of differences over alpha >= .01: 1e-14.
    torch.testing.assert_close(
        gradient(plain.loss, net), gradient(expected.mean(), net), rtol=1e-10, atol=1e-13
    )
    interior = expected[N_EQUAL:] / alpha
    torch.testing.assert_close(plain.squared_error[N_EQUAL:], interior, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(plain.squared_error[:N_EQUAL], expected[:N_EQUAL])


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_limit_is_mean_flow_at_first_order(p, beta):
    """The gradient's distance to MeanFlow's falls with alpha itself: by 10, for a tenth of it."""
    net, weight = Net(), AdaptiveWeight(p=p)
    limit = gradient(terms(None, net, beta=beta, weight=weight).loss, net)
    distances = [
        (gradient(terms(alpha, net, beta=beta, weight=weight).loss, net) - limit).norm().item()
        for alpha in (1e-2, 1e-3, 1e-4)
    ]
    assert distances[0] < 0.1 * limit.norm()
    assert distances[0] / distances[1] == pytest.approx(10, rel=0.05)
    assert distances[1] / distances[2] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_alpha_1_is_trajectory_flow_matching(beta):
    """|u(z, r, t) - v_cond|^2 for all samples, with one evaluation of u and none of the proxy."""
    net, d, calls = Net(), draws(), []

    def u(z, r, t):
        calls.append(len(z))
        return net(z, r, t)

    found = terms(1.0, u, d, beta, refuse)
    z = (1 - d.t[:, None]) * d.x + d.t[:, None] * d.e
    error = (net(z, d.r, d.t) - (d.e - d.x)).square().sum(1)
    assert torch.equal(found.squared_error, error) and calls == [N]
    assert not found.squared_correction.any()
    weighted = (error / (error.detach() + 0.01).sqrt()).mean()
    torch.testing.assert_close(gradient(found.loss, net), gradient(weighted, net))


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_alpha_0_is_mean_flow_to_the_bit(beta):
    net = Net()
    found, plain = (terms(alpha, net, beta=beta) for alpha in (0.0, None))
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(found.squared_error, plain.squared_error)
    assert torch.equal(gradient(found.loss, net), gradient(plain.loss, net))


@pytest.mark.parametrize("n_equal", [0, N_EQUAL, N])
def test_samples_with_equal_times_are_not_evaluated_again(n_equal):
    calls = []

    def u(z, r, t):
        calls.append(len(z))
        return z * (1 + t - r)[:, None]

    found = terms(0.3, u, draws(n_equal))
    assert calls == [N, *([N - n_equal] if n_equal < N else [])]
    assert not found.squared_correction[:n_equal].any() and found.n_equal == n_equal


def test_beta_may_differ_between_samples():
    net, betas = Net(), torch.linspace(0, 1, N, dtype=torch.float64)
    joint = terms(0.2, net, beta=betas).squared_error
    for i, beta in enumerate(betas.tolist()):
        alone = terms(0.2, net, beta=beta).squared_error[i]
        torch.testing.assert_close(joint[i], alone, rtol=1e-12, atol=0)


def test_trace_weight_goes_with_it():
    net, d = Net(), draws()
    signs = draw_signs((1, N, 2), generator("alpha signs")).double()
    both = AlphaFlowLoss(trace=TraceWeight(), alpha=AlphaSchedule(value=0.4))
    found = both(net, d, beta=0.0, v_hat=proxy, signs=signs, progress=0.0)
    z = (1 - d.t[:, None]) * d.x + d.t[:, None] * d.e
    weight = both.trace(both.trace.trace(net, z, d.r, d.t, N_EQUAL, signs), d.t)
    torch.testing.assert_close(found.loss, (weight * found.squared_error).mean())


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_anchor_goes_with_it(alpha):
    """As with MeanFlow's loss: |u(z, t - gap, t) - v_cond|^2 is added, unweighted."""
    net, d, uniform = Net(), draws(), torch.linspace(0, 1, N, dtype=torch.float64)
    settings = {"weight": WEIGHTED, "alpha": AlphaSchedule(value=alpha)}
    anchored = AlphaFlowLoss(anchor=Anchor(weight=0.3, max_gap=0.5), **settings)
    parts = {"beta": 0.6, "v_hat": proxy, "progress": 0.5, "anchor_uniform": uniform}
    found, plain = anchored(net, d, **parts), AlphaFlowLoss(**settings)(net, d, **parts)
    z = (1 - d.t[:, None]) * d.x + d.t[:, None] * d.e
    residual = net(z, (d.t - 0.5 * uniform).clamp_min(0), d.t) - (d.e - d.x)
    expected = plain.loss + 0.3 * residual.square().sum(1).mean()
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_given_velocity_takes_the_place_of_the_conditional_one(alpha):
    """That of another pair of data and noise with the same point z: in target and tangent."""
    net, d = Net(), draws()
    t, shift = d.t[:, None], torch.tensor([0.7, -0.4], dtype=torch.float64)
    other = d._replace(x=d.x + t * shift, e=d.e - (1 - t) * shift)
    loss = AlphaFlowLoss(weight=WEIGHTED, alpha=AlphaSchedule(value=alpha))
    parts = {"beta": 0.6, "v_hat": proxy, "progress": 0.5}
    found = loss(net, d, velocity=other.e - other.x, **parts)
    expected = loss(net, other, **parts)
    torch.testing.assert_close(found.squared_error, expected.squared_error, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        gradient(found.loss, net), gradient(expected.loss, net), rtol=1e-10, atol=1e-13
    )


def test_curriculum_formula():
    """As in the authors' code: a logistic function of slope 25 over the whole of training."""
    schedule = AlphaSchedule()
    for progress in (0.35, 0.5, 0.62):
        expected = 1 - 1 / (1 + math.exp(-25 * (progress - 0.5)))
        assert schedule(progress) == pytest.approx(expected, rel=1e-12)
    # Within .005 of the ends: log(199) / 25 = .2117 from the middle.
    assert [schedule(p) for p in (0.0, 0.288, 0.712, 1.0)] == [1, 1, 0, 0]
    assert 0.994 < schedule(0.289) < 0.995 and 0.005 < schedule(0.711) < 0.006


def test_curriculum_falls_within_its_window():
    schedule = AlphaSchedule(begin=0.2, finish=0.6, sharpness=6, clamp=0.0)
    assert [schedule(p) for p in (0.0, 0.19, 0.61, 1.0)] == [1, 1, 0, 0]
    assert schedule(0.4) == pytest.approx(0.5)
    assert schedule(0.2) == pytest.approx(1 / (1 + math.exp(-3)))
    values = [schedule(0.2 + 0.004 * k) for k in range(101)]
    assert values == sorted(values, reverse=True)
    assert schedule(0.3) + schedule(0.5) == pytest.approx(1)


def test_constant_alpha_is_taken_as_it_is():
    assert [AlphaSchedule(value=a)(0.7) for a in (0.0, 0.001, 0.5, 1.0)] == [0, 0.001, 0.5, 1]


def test_extreme_sharpness_is_a_step():
    schedule = AlphaSchedule(sharpness=1e6)
    assert (schedule(0.499), schedule(0.501)) == (1, 0)


def test_alpha_without_progress_is_refused():
    loss = AlphaFlowLoss()
    with pytest.raises(ValueError, match="needs progress"):
        loss(Net(), draws(), beta=0.0, v_hat=refuse)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"value": v}, "alpha must lie in") for v in (-0.1, 1.1, math.nan)),
        ({"value": 0.5, "begin": 0.1}, "a constant alpha takes no begin"),
        ({"value": 0.5, "clamp": 0.1}, "a constant alpha takes no begin"),
        ({"begin": 0.5, "finish": 0.5}, "0 <= begin < finish <= 1; got 0.5 and 0.5"),
        ({"begin": -0.1}, "0 <= begin < finish"),
        ({"finish": 1.1}, "0 <= begin < finish"),
        ({"sharpness": 0.0}, "positive sharpness"),
        ({"clamp": 0.5}, "clamp in"),
        ({"clamp": math.nan}, "clamp in"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AlphaSchedule(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"value": 0.0},
        {"value": 1.0},
        {"begin": 0.0, "finish": 0.01},
        {"begin": 0.99, "finish": 1.0},
        {"sharpness": 0.5, "clamp": 0.0},
        {"clamp": 0.49},
    ],
)
def test_limits_themselves_are_allowed(settings):
    values = [AlphaSchedule(**settings)(k / 100) for k in range(101)]
    assert values == sorted(values, reverse=True) and 0 <= values[-1] <= values[0] <= 1


def test_a_slow_curriculum_is_nearly_linear():
    """1 / (1 + exp(s q)) = 1/2 - s q / 4 + O(s^3), also for a sharpness below 1."""
    schedule = AlphaSchedule(sharpness=0.02)
    for progress in (0.0, 0.25, 0.8, 1.0):
        expected = 0.5 - 0.02 * (progress - 0.5) / 4
        assert schedule(progress) == pytest.approx(expected, abs=1e-7)  # (s / 2)^3 / 48 = 2e-8
