"""Guidance inside the target: its formula, its fixed point, and its neutral setting."""

import math

import pytest
import torch
from scipy import stats

from vamf.flow.guidance import Guidance, Labels, drop_labels, velocity_with_labels, with_labels
from vamf.flow.objectives.meanflow import Anchor, MeanFlowLoss, path_derivative
from vamf.flow.objectives.terms import Draws
from vamf.flow.tangents import boundary_velocity
from vamf.rng import generator

N, N_EQUAL, CLASSES = 8, 3, 4
Y = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
NOTHING = torch.zeros(N, dtype=torch.bool)
KEPT = Labels(Y, NOTHING)
SOME = Labels(
    torch.tensor([4, 1, 2, 4, 3, 2, 4, 0]),
    torch.tensor([1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.bool),
)


DRAWN = SOME._replace(kappa=(1 - 1 / torch.linspace(1, 8, N).double()).masked_fill(SOME.dropped, 0))


class Net(torch.nn.Module):
    """u(z, r, t, y), in float64, with a vector for each class."""

    def __init__(self, key="guidance net"):
        super().__init__()
        g = generator(key)
        self.w1 = torch.nn.Parameter(torch.randn(4, 16, generator=g).double() / 2)
        self.w2 = torch.nn.Parameter(torch.randn(16, 2, generator=g).double() / 4)
        self.classes = torch.nn.Parameter(torch.randn(CLASSES + 1, 16, generator=g).double())

    def forward(self, z, r, t, y=None, kappa=None):
        y = torch.full((len(z),), CLASSES) if y is None else y
        h = torch.cat([z, r[:, None], t[:, None]], 1) @ self.w1 + self.classes[y]
        return torch.tanh(h if kappa is None else h + kappa[:, None]) @ self.w2


def draws(n_equal=N_EQUAL):
    g = generator("guidance draws")
    x, e = torch.randn(2, N, 2, generator=g, dtype=torch.float64)
    times = 0.05 + 0.9 * torch.rand(2, N, generator=g, dtype=torch.float64)
    t = times.amax(0)
    return Draws(x, e, torch.cat([t[:n_equal], times.amin(0)[n_equal:]]), t, n_equal)


def on_path(d):
    t = d.t[:, None]
    return (1 - t) * d.x + t * d.e, d.e - d.x


def guided(guidance, net, mean, d, labels, beta, without=0):
    z, v_cond = on_path(d)
    own, v_hat = boundary_velocity(net), boundary_velocity(mean)
    return guidance(own, v_hat, z, d.t, v_cond, labels, beta, without)


def loss(guidance, net, mean, d, labels, beta, without=0, **settings):
    velocity, beta, own = guided(guidance, net, mean, d, labels, beta, without)
    v_hat = with_labels(boundary_velocity(mean), labels.y, labels.kappa)
    objective = MeanFlowLoss(**{k: v for k, v in settings.items() if k == "anchor"})
    rest = {k: v for k, v in settings.items() if k != "anchor"}
    return objective(
        with_labels(net, labels.y, labels.kappa),
        d,
        beta=beta,
        v_hat=v_hat,
        velocity=velocity,
        cond_weight=own,
        **rest,
    )


def formula(omega, kappa, net, z, t, v_cond):
    """v_g of arXiv 2505.13447, section 4.2, written out."""
    with torch.no_grad():
        null, known = net(z, t, t), net(z, t, t, Y)
    return omega * v_cond + (1 - omega - kappa) * null + kappa * known


@pytest.mark.parametrize(("omega", "kappa"), [(1.0, 0.5), (0.2, 0.92), (2.0, 0.0), (0.3, 0.7)])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_guided_velocity_is_the_papers(omega, kappa, beta):
    net, mean, d = Net(), Net("mean"), draws()
    z, v_cond = on_path(d)
    velocity, left, _ = guided(Guidance(omega=omega, cfg_kappa=kappa), net, mean, d, KEPT, beta)
    assert left == beta and not velocity.requires_grad
    expected = formula(omega, kappa, net, z, d.t, v_cond)
    torch.testing.assert_close(velocity, expected, rtol=1e-12, atol=1e-13)  # float64 rounding


def test_a_drawn_scale_guides_its_sample():
    """v_cond + (1 - 1 / s) (u(z, t, t, y, s) - u(z, t, t)) of iMF's code, and v_cond if dropped."""
    net, mean, d = Net(), Net("mean"), draws()
    z, v_cond = on_path(d)
    velocity, left, _ = guided(Guidance(max_scale=8.0), net, mean, d, DRAWN, 0.4)
    with torch.no_grad():
        difference = net(z, d.t, d.t, DRAWN.y, DRAWN.kappa) - net(z, d.t, d.t)
    expected = v_cond + DRAWN.kappa[:, None] * difference
    torch.testing.assert_close(velocity, expected, rtol=1e-12, atol=1e-13)
    assert left == 0.4 and torch.equal(velocity[DRAWN.dropped], v_cond[DRAWN.dropped])


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 3.0])
def test_scales_follow_a_power_law(power):
    """Their density falls as scale ** -power, from 1 to the largest; at 1 as their inverse."""
    kappa = Guidance(max_scale=8.0, scale_power=power).draw_kappa(20_000, generator("scales"))
    scales = 1 / (1 - kappa.double())
    assert scales.min() >= 1 and scales.max() < 8.001  # float32 rounding
    b = 1 - power
    share = (scales**b - 1) / (8**b - 1) if b else scales.log() / math.log(8)
    assert stats.kstest(share, "uniform").pvalue > 1e-3
    assert Guidance().draw_kappa(4, generator("scales")) is None


def test_a_power_near_one_is_that_of_one():
    """By differences of logarithms, or 1 - 1 / scale would lose its digits."""
    one, near = (
        Guidance(max_scale=8.0, scale_power=p).draw_kappa(1000, generator("near"))
        for p in (1.0, 1 + 1e-9)
    )
    torch.testing.assert_close(near, one, rtol=1e-5, atol=1e-7)  # float32 rounding


def test_intervals_begin_in_the_first_half_and_end_in_the_second():
    whole = torch.arange(20_000) < 100
    rule = Guidance(max_scale=8.0, random_interval=True)
    interval = rule.draw_interval(whole, generator("intervals"))
    assert (interval[:100] == torch.tensor([0.0, 1.0])).all()
    first, last = (2 * interval[100:].double()).unbind(1)
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert stats.kstest(last - 1, "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(first, last).statistic) < 5 / 20_000**0.5
    assert Guidance(max_scale=8.0).draw_interval(whole, generator("intervals")) is None


def test_a_velocity_is_told_the_scale_that_applies_at_its_time():
    """And no interval; the samples are the last of the batch."""
    seen = []
    kappa, t = torch.full((N,), 0.5), torch.linspace(0, 1, N)
    interval = torch.tensor([0.2, 0.6]).expand(N, 2)
    v = velocity_with_labels(lambda z, t, *known: seen.append(known) or z, Y, kappa, interval)
    v(torch.zeros(N - 2, 2), t[2:])
    ((y, told),) = seen
    assert torch.equal(y, Y[2:])
    assert told.tolist() == [0.5 * (0.2 <= s <= 0.6) for s in t[2:].tolist()]
    own = torch.zeros(N, 2)
    velocity_with_labels(lambda z, t, *known: seen.append(known) or z, Y, kappa)(own, t)
    assert torch.equal(seen[1][1], kappa)  # without an interval all is told


def test_outside_of_its_own_interval_a_sample_is_not_guided():
    net, d = Net(), draws()
    z, v_cond = on_path(d)
    interval = torch.stack([d.t - 0.01, d.t + 0.01], 1)
    interval[::2] += 0.05
    rule, v = Guidance(max_scale=8.0, random_interval=True), boundary_velocity(net)
    kappa = torch.full((N,), 0.7).double()
    always = rule.velocity(v, z, d.t, v_cond, Y, kappa)
    found = rule.velocity(v, z, d.t, v_cond, Y, kappa, interval=interval)
    assert torch.equal(found[::2], v_cond[::2]) and torch.equal(found[1::2], always[1::2])


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0, torch.linspace(0, 1, N, dtype=torch.float64)])
def test_mixed_parameters_are_the_repositorys(beta):
    """(1 - beta) v_g + beta v_g' : v_cond keeps its weight at every beta."""
    net, mean, d = Net(), Net("mean"), draws()
    z, v_cond = on_path(d)
    guidance = Guidance(omega=1.0, cfg_kappa=0.5, mixing="parameters")
    velocity, left, _ = guided(guidance, net, mean, d, KEPT, beta)
    share = beta[:, None] if isinstance(beta, torch.Tensor) else beta
    corrections = [formula(1.0, 0.5, u, z, d.t, v_cond) - v_cond for u in (net, mean)]
    expected = v_cond + (1 - share) * corrections[0] + share * corrections[1]
    torch.testing.assert_close(velocity, expected, rtol=1e-12, atol=1e-13)
    assert left == 0


def test_mixed_parameters_take_the_scale_too():
    net, mean, d = Net(), Net("mean"), draws()
    z, v_cond = on_path(d)
    velocity, left, _ = guided(
        Guidance(max_scale=8.0, mixing="parameters"), net, mean, d, DRAWN, 0.4
    )
    expected = v_cond.clone()
    for share, u in ((0.6, net), (0.4, mean)):
        known, null = u(z, d.t, d.t, DRAWN.y, DRAWN.kappa), u(z, d.t, d.t)
        expected += share * DRAWN.kappa[:, None] * (known - null)
    expected = torch.where(DRAWN.dropped[:, None], v_cond, expected)
    torch.testing.assert_close(velocity, expected, rtol=1e-12, atol=1e-13)
    assert left == 0


@pytest.mark.parametrize("mixing", ["tangent", "parameters"])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_target_and_tangent_take_the_guided_velocity(mixing, beta):
    """|u(z, r, t, y) - sg[v - (t - r) du/dt]|^2 by central differences along the tangent."""
    net, mean, d, h = Net(), Net("mean"), draws(), 1e-5
    z, v_cond = on_path(d)
    own, other = (formula(1.0, 0.5, u, z, d.t, v_cond) for u in (net, mean))
    with torch.no_grad():
        v_hat = mean(z, d.t, d.t, Y)
    if mixing == "tangent":
        target, tangent = own, (1 - beta) * own + beta * v_hat
    else:
        target = tangent = (1 - beta) * own + beta * other
    with torch.no_grad():
        ahead = net(z + h * tangent, d.r, d.t + h, Y)
        behind = net(z - h * tangent, d.r, d.t - h, Y)
    compound = net(z, d.r, d.t, Y) + (d.t - d.r)[:, None] * (ahead - behind) / (2 * h)
    expected = (compound - target).square().sum(1)
    guidance = Guidance(omega=1.0, cfg_kappa=0.5, mixing=mixing)
    found = loss(guidance, net, mean, d, KEPT, beta)
    # Differences of second order: 1e-9 of numbers of order 1.
    torch.testing.assert_close(found.squared_error, expected, rtol=1e-7, atol=1e-8)
    gradients = [torch.autograd.grad(x, net.w2)[0] for x in (found.loss, expected.mean())]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mixing", ["tangent", "parameters"])
def test_dropped_labels_keep_the_conditional_velocity_and_know_no_class(mixing):
    """Their losses are those of a network of no class without guidance."""
    net, mean, d = Net(), Net("mean"), draws()
    guidance = Guidance(omega=1.0, cfg_kappa=0.5, mixing=mixing)
    found = loss(guidance, net, mean, d, SOME, 0.0)
    plain = MeanFlowLoss()(net, d, beta=0.0, v_hat=None)
    whole = loss(guidance, net, mean, d, KEPT, 0.0)
    dropped = SOME.dropped
    pick = found.squared_error
    torch.testing.assert_close(pick[dropped], plain.squared_error[dropped], rtol=1e-12, atol=0)
    torch.testing.assert_close(pick[~dropped], whole.squared_error[~dropped], rtol=1e-12, atol=0)


@pytest.mark.parametrize("mixing", ["tangent", "parameters"])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0, torch.linspace(0, 1, N, dtype=torch.float64)])
@pytest.mark.parametrize("times", [{}, {"t_min": 0.3, "t_max": 0.7}])
@pytest.mark.parametrize("labels", [SOME, DRAWN], ids=["fixed", "drawn"])
def test_own_velocity_may_be_what_the_loss_evaluates(mixing, beta, times, labels):
    """Where r = t it is u(z, r, t, y); it is evaluated for the other samples alone."""
    net, mean, d, seen = Net(), Net("mean"), draws(), []
    uniform = torch.linspace(0, 1, N).double()
    anchor = {"anchor": Anchor(weight=0.5, max_gap=0.2), "anchor_uniform": uniform}
    fixed = {"omega": 0.8, "cfg_kappa": 0.5} if labels is SOME else {"max_scale": 8.0}
    guidance = Guidance(mixing=mixing, **fixed, **times)
    whole = loss(guidance, net, mean, d, labels, beta, **anchor)
    net.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), len(args) > 3)))
    found = loss(guidance, net, mean, d, labels, beta, without=N_EQUAL, **anchor)
    assert seen.count((N - N_EQUAL, True)) > seen.count((N, False)) == 1  # at labels; at none
    assert seen.count((N, True)) == 2  # the loss and the anchor
    torch.testing.assert_close(found.squared_error, whole.squared_error, rtol=1e-12, atol=1e-13)
    gradients = (torch.autograd.grad(x.loss, list(net.parameters())) for x in (found, whole))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixing", ["tangent", "parameters"])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_neutral_is_mean_flow_of_the_conditional_network_to_the_bit(mixing, beta):
    net, mean, d = Net(), Net("mean"), draws()
    guidance = Guidance(omega=1.0, cfg_kappa=0.0, dropout=0.0, mixing=mixing)
    labels = drop_labels(Y, CLASSES, 0.0, generator("none"))
    assert not labels.dropped.any() and torch.equal(labels.y, Y)
    found = loss(guidance, net, mean, d, labels, beta)
    v_hat = with_labels(boundary_velocity(mean), Y)
    left = 0.0 if mixing == "parameters" else beta  # there beta mixes what has no weight
    plain = MeanFlowLoss()(with_labels(net, Y), d, beta=left, v_hat=v_hat)
    assert torch.equal(found.loss, plain.loss)
    pairs = (torch.autograd.grad(x.loss, list(net.parameters())) for x in (found, plain))
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_nothing_is_evaluated_without_weight():
    calls = []

    def v(z, t, *y):
        calls.append(bool(y))
        return z

    z, v_cond = on_path(draws())
    for settings in ({}, {"omega": 2.0}, {"omega": 0.5, "cfg_kappa": 0.5}, {"cfg_kappa": 0.5}):
        Guidance(**settings).velocity(v, z, draws().t, v_cond, Y)
        calls.append(None)
    assert calls == [None, False, None, True, None, False, True, None]


def test_outside_of_its_times_the_conditional_velocity_stays():
    net, d = Net(), draws()
    z, v_cond = on_path(d)
    edges = d.t.sort().values[[2, 5]].tolist()  # both belong to it
    always, sometimes = (
        Guidance(omega=0.2, cfg_kappa=0.92, t_min=low, t_max=high).velocity(
            boundary_velocity(net), z, d.t, v_cond, Y
        )
        for low, high in ((0.0, 1.0), edges)
    )
    acts = (edges[0] <= d.t) & (d.t <= edges[1])
    assert acts.sum() == 4 and not torch.isclose(always, v_cond).any()
    assert torch.equal(sometimes[acts], always[acts])
    assert torch.equal(sometimes[~acts], v_cond[~acts])


def test_fixed_point_is_guidance_of_scale_omega_over_1_minus_kappa():
    """Iterating u(y) = E[v_g] with u of no class the marginal velocity gives its extrapolation."""
    known, marginal = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 0.5])
    guidance, u, d = Guidance(omega=0.8, cfg_kappa=0.6), marginal, draws()
    for _ in range(100):
        u = guidance.velocity(
            lambda z, t, *y, u=u: u if y else marginal, marginal, d.t, known, Y[:2]
        )
    expected = 2 * known + (1 - 2) * marginal  # .8 / (1 - .6)
    torch.testing.assert_close(u, expected, rtol=1e-5, atol=1e-6)


def test_fixed_point_of_drawn_scales_is_guidance_of_those_scales():
    known, marginal, d = torch.randn(N, 2, generator=generator("known")), torch.ones(N, 2), draws()
    scales = torch.linspace(1, 4, N)
    u = marginal
    for _ in range(200):
        u = Guidance(max_scale=8.0).velocity(
            lambda z, t, *y, u=u: u if y else marginal, marginal, d.t, known, Y, 1 - 1 / scales
        )
    expected = marginal + scales[:, None] * (known - marginal)
    torch.testing.assert_close(u, expected, rtol=1e-5, atol=1e-5)


def test_anchor_draws_to_the_guided_velocity():
    net, mean, d = Net(), Net("mean"), draws()
    anchor, uniform = Anchor(weight=0.5, max_gap=0.2), torch.linspace(0, 1, N).double()
    guidance = Guidance(cfg_kappa=0.5)
    without = loss(guidance, net, mean, d, KEPT, 0.3).loss
    found = loss(guidance, net, mean, d, KEPT, 0.3, anchor=anchor, anchor_uniform=uniform).loss
    z, v_cond = on_path(d)
    residual = net(z, (d.t - 0.2 * uniform).clamp_min(0), d.t, Y)
    residual = residual - formula(1.0, 0.5, net, z, d.t, v_cond)
    expected = without + 0.5 * residual.square().sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_labels_go_with_the_samples_that_a_batch_ends_with():
    seen = []
    u = with_labels(lambda z, r, t, y: seen.append(y.tolist()) or z, Y)
    d = draws()
    path_derivative(u, d, 0.0, lambda z, t: z)
    u(d.x, d.r, d.t)
    assert seen == [Y[N_EQUAL:].tolist(), Y.tolist()]


def test_labels_are_dropped_independently():
    """Binomial(20000, .1): 5 standard errors; the rest stay as they were."""
    n = 20_000
    y = torch.arange(n) % CLASSES
    labels = drop_labels(y, CLASSES, 0.1, generator("drop"))
    assert abs(labels.dropped.double().mean() - 0.1) < 5 * (0.09 / n) ** 0.5
    assert torch.equal(labels.y == CLASSES, labels.dropped)
    assert torch.equal(labels.y[~labels.dropped], y[~labels.dropped])


@pytest.mark.parametrize(
    "settings",
    [
        {"omega": 0.0},
        {"omega": math.nan},
        {"cfg_kappa": -0.1},
        {"cfg_kappa": 1.0},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="guidance needs omega > 0, and cfg_kappa and dropout"):
        Guidance(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"omega": 0.01, "cfg_kappa": 0.0, "dropout": 0.0},
        {"cfg_kappa": 0.99, "dropout": 0.99},
        {"t_min": 0.0, "t_max": 0.01},
        {"t_min": 0.99, "t_max": 1.0},
        {"max_scale": 1.01},
    ],
)
def test_limits_themselves_are_allowed(settings):
    z, v_cond = on_path(draws())
    kappa = torch.zeros(N).double() if "max_scale" in settings else None
    found = Guidance(**settings).velocity(lambda z, t, *_: z, z, draws().t, v_cond, Y, kappa)
    assert found.isfinite().all()


@pytest.mark.parametrize("most", [1.0, 0.5, math.nan, math.inf])
def test_a_largest_scale_of_no_use_is_refused(most):
    with pytest.raises(ValueError, match="max_scale must be finite and over 1; got"):
        Guidance(max_scale=most)
    with pytest.raises(ValueError, match=r"omega and cfg_kappa must be 1 and 0; got 1.0 and"):
        Guidance(max_scale=4.0, cfg_kappa=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_interval": True}, "random_interval need guidance.max_scale; got 1.0 and True"),
        ({"scale_power": 2.0}, "need guidance.max_scale; got 2.0 and False without it"),
        ({"max_scale": 8.0, "scale_power": math.inf}, "scale_power must be finite; got inf"),
        (
            {"max_scale": 8.0, "random_interval": True, "t_max": 0.5},
            "t_min and t_max must be 0 and 1; got 0.0 and 0.5",
        ),
    ],
)
def test_draws_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**settings)


@pytest.mark.parametrize("times", [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (math.nan, 1.0)])
def test_times_that_are_no_interval_are_refused(times):
    with pytest.raises(ValueError, match="guidance needs 0 <= t_min < t_max <= 1; got"):
        Guidance(t_min=times[0], t_max=times[1])
