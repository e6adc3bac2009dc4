"""Improved Mean Flows in full: the loss against a naive one, and against exact flows of Gaussians.

The naive loss follows arXiv 2512.02012 and `forward` of github.com/Lyy-iiis/imeanflow, imf.py.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from vamf.data.digits import Digits
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Compute
from vamf.flow.guidance import Guidance, Labels
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, squared_norm
from vamf.flow.times import LogitNormalTimes
from vamf.models.dit import DiTConfig
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.presets import FAST
from vamf.rng import generator
from vamf.training.step import objective as objective_module
from vamf.training.step.head import head_loss
from vamf.training.step.objective import Inputs, Objective
from vamf.training.step.proxies import build_proxy

EXPERIMENT = Experiment(
    data=Digits(),
    model=MLPConfig(
        hidden=(16,),
        embedding=4,
        classes=10,
        guided=True,
        guided_interval=True,
        velocity_head=True,
    ),
    times=LogitNormalTimes(prob_equal=0.5),
    proxy="head",
    loss=MeanFlowLoss(weight=AdaptiveWeight(p=1.0, c=0.01)),
    guidance=Guidance(max_scale=8.0, random_interval=True, dropout=0.3),
    batch=16,
    steps=10,
).override({"beta.value": 1.0, "head.every_r": True})
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}
"""Rounding in float64."""


def objective(experiment=EXPERIMENT, dtype=torch.float64, workers=Workers()):  # noqa: B008
    torch.manual_seed(0)
    net = experiment.model.build((1, 8, 8)).to(dtype)
    with torch.no_grad():
        for weight in (p for p in net.parameters() if p.ndim > 1):  # at the start some are nearly 0
            weight.normal_(std=0.3)
    v_hat = build_proxy(experiment, net, net, workers.device)
    return Objective(experiment, net, v_hat, experiment.data.load("train"), workers)


def inputs_of(own, step=2, dtype=torch.float64):
    wide = own.inputs(step)
    return tree_map_only(torch.Tensor, lambda a: a.to(dtype) if a.is_floating_point() else a, wide)


def naive(net, draws, labels):
    """The loss written out, one sample's tensors for all."""
    x, e, r, t, _ = draws
    y, dropped, kappa, interval = labels

    def wide(a):
        return a.reshape(-1, 1, 1, 1)

    z, v_cond = wide(1 - t) * x + wide(t) * e, e - x
    inside = (interval[:, 0] <= t) & (t <= interval[:, 1]) & ~dropped
    scale = torch.where(inside, 1 / (1 - kappa), 1.0)
    whole = torch.tensor([0.0, 1.0], dtype=t.dtype).expand(len(t), 2)

    def velocity(y, scale):
        return net.velocity(z, t, y, 1 - 1 / scale, whole)

    none = torch.full_like(y, 10)
    with torch.no_grad():
        v_c, v_u = velocity(y, scale), velocity(none, torch.ones_like(scale))
        v_g = v_cond + wide(1 - 1 / scale) * (v_c - v_u)

        def u(z, r, t):
            return net(z, r, t, y, kappa, interval)

        tangents = v_c, torch.zeros_like(r), torch.ones_like(t)
        _, du_dt = torch.func.jvp(u, (z, r, t), tangents)
    compound = net(z, r, t, y, kappa, interval) + wide(t - r) * du_dt
    head = net.velocity(z, t, y, kappa, interval, r=r)
    errors = [(a - v_g).square().sum((1, 2, 3)) for a in (compound, head)]
    return sum((error / (error.detach() + 0.01)).mean() for error in errors)


def test_the_whole_loss_and_its_gradient_are_the_naive_ones():
    own = objective()
    inputs = inputs_of(own)
    labels, t = inputs.labels, inputs.draws.t
    acts = (labels.interval[:, 0] <= t) & (t <= labels.interval[:, 1])
    assert labels.dropped.any() and (labels.kappa > 0).any() and not acts.all()  # every case
    found, expected = own.terms(inputs).loss, naive(own.net, inputs.draws, labels)
    torch.testing.assert_close(found, expected, **ROUNDING)
    pairs = (torch.autograd.grad(a, list(own.net.parameters())) for a in (found, expected))
    for a, b in zip(*pairs, strict=True):
        assert b.norm() > 0
        torch.testing.assert_close(a, b, **ROUNDING)


def test_micro_batches_have_the_gradient_of_the_whole_batch():
    """With the intervals of their own samples."""
    own = objective()
    inputs, parameters = inputs_of(own), list(own.net.parameters())
    expected = torch.autograd.grad(own.terms(inputs).loss, parameters)
    losses = [own.terms(inputs.micro_batch(index, 3)).loss for index in range(3)]
    shares = [len(range(index, 16, 3)) / 16 for index in range(3)]
    found = sum(share * loss for share, loss in zip(shares, losses, strict=True))
    for a, b in zip(torch.autograd.grad(found, parameters), expected, strict=True):
        torch.testing.assert_close(a, b, **ROUNDING)


def test_the_mean_of_two_workers_is_the_single_one():
    """Whose intervals and samples with r = t are shared out as the batch is."""
    whole, halves = objective(), [objective(workers=Workers(rank, 2)) for rank in range(2)]
    losses = [own.terms(inputs_of(own)).loss for own in halves]
    expected = whole.terms(inputs_of(whole)).loss
    torch.testing.assert_close(sum(losses) / 2, expected, rtol=1e-12, atol=0)


STD, NULL = 0.6, torch.tensor([0.3, -0.2]).double()
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]]).double()


def gaussian(z, t, mean):
    """The velocity of data N(mean, STD^2 I) on the linear path."""
    t = t[:, None]
    away = z - (1 - t) * mean
    return (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2) * away - mean


def carried(z, t, r, mean):
    """The point at r of the same flow through z at t."""
    t, r = t[:, None], r[:, None]
    shrink = ((1 - r) ** 2 * STD**2 + r**2) / ((1 - t) ** 2 * STD**2 + t**2)
    return (1 - r) * mean + shrink.sqrt() * (z - (1 - t) * mean)


class Exact(nn.Module):
    """The flow of N(m_y, STD^2 I), guided in an interval away from that of no class, N(NULL, ...).

    Guidance by a scale s makes of two Gaussians of one variance that of mean m + s (m_y - m): the
    guided velocity, and its flow through the interval's edges, are closed forms.
    """

    def means(self, y, kappa):
        own = torch.cat([MEANS, NULL[None]])[y]
        return own, NULL + (own - NULL) / (1 - kappa)[:, None]

    def known(self, z, y, kappa, interval):
        y = torch.full((len(z),), 3) if y is None else y
        kappa = torch.zeros(len(z)).double() if kappa is None else kappa
        whole = torch.tensor([0.0, 1.0]).double().expand(len(z), 2)
        return y, kappa, whole if interval is None else interval

    def velocity(self, z, t, y=None, kappa=None, interval=None, r=None):
        y, kappa, interval = self.known(z, y, kappa, interval)
        own, guided = self.means(y, kappa)
        inside = (interval[:, 0] <= t) & (t <= interval[:, 1])
        return gaussian(z, t, torch.where(inside[:, None], guided, own))

    def forward(self, z, r, t, y=None, kappa=None, interval=None):
        y, kappa, interval = self.known(z, y, kappa, interval)
        own, guided = self.means(y, kappa)
        enters = torch.minimum(torch.maximum(interval[:, 1], r), t)
        leaves = torch.minimum(torch.maximum(interval[:, 0], r), enters)
        end = carried(z, t, enters, own)
        end = carried(carried(end, enters, leaves, guided), leaves, r, own)
        gap = torch.where(t == r, 1.0, t - r)[:, None]
        at_once = self.velocity(z, t, y, kappa, interval)
        return torch.where((t == r)[:, None], at_once, (z - end) / gap)


def exact_step(interval, n=240, n_equal=80):
    """Draws and labels of the classes' data, with scales and random intervals or none."""
    g = generator("exact", str(interval))
    x, e = torch.randn(2, n, 2, generator=g, dtype=torch.float64)
    times = 0.02 + 0.96 * torch.rand(2, n, generator=g, dtype=torch.float64)
    t = times.amax(0)
    r = torch.cat([t[:n_equal], times.amin(0)[n_equal:]])
    y = torch.randint(4, (n,), generator=g)
    dropped = y == 3
    kappa = (0.8 * torch.rand(n, generator=g).double()).masked_fill(dropped, 0)
    whole = dropped | (torch.arange(n) < n_equal)
    rule = Guidance(max_scale=8.0, random_interval=interval)
    times = rule.draw_interval(whole, g)
    means = torch.cat([MEANS, NULL[None]])[y]
    draws = Draws(means + STD * x, e, r, t, n_equal)
    return draws, Labels(y, dropped, kappa, times if times is None else times.double())


@pytest.mark.parametrize("interval", [False, True])
def test_the_exact_guided_flow_leaves_the_noise_of_the_data_alone(interval):
    """Its residuals are those of v(z, t, y) - v_cond, 0 in expectation: no gradient is left.

    Of u and of the head, at every scale, whatever part of [r, t] is guided.
    """
    draws, labels = exact_step(interval)
    net, data = Exact(), Digits().load("train")
    experiment = EXPERIMENT.override(
        {"guidance.random_interval": interval, "model.guided_interval": interval}
        | {"loss.weight.p": 0.0}
    )
    v_hat = build_proxy(experiment, net, net, torch.device("cpu"))
    own = Objective(experiment, net, v_hat, data, Workers())
    terms = own.terms(Inputs(draws, draws.t, labels, None, 1.0, None, None))
    z = (1 - draws.t[:, None]) * draws.x + draws.t[:, None] * draws.e
    noise = gaussian(z, draws.t, torch.cat([MEANS, NULL[None]])[labels.y]) - (draws.e - draws.x)
    torch.testing.assert_close(terms.squared_error, squared_norm(noise), rtol=1e-8, atol=1e-9)
    # u's loss and the head's
    torch.testing.assert_close(terms.loss, 2 * squared_norm(noise).mean(), rtol=1e-9, atol=0)
    if interval:  # all orders of r, t and the interval's edges occur
        inside = [(labels.interval[:, 0] <= s) & (s <= labels.interval[:, 1]) for s in draws[2:4]]
        assert all(((inside[0] == a) & (inside[1] == b)).sum() > 5 for a in (0, 1) for b in (0, 1))


def test_an_interval_of_all_times_is_none_to_the_bit():
    own = objective(dtype=torch.float32)
    inputs = inputs_of(own, dtype=torch.float32)
    labels = inputs.labels
    whole = torch.tensor([0.0, 1.0]).expand(16, 2)
    found = [
        own.terms(inputs._replace(labels=labels._replace(interval=interval)))
        for interval in (whole, None)
    ]
    assert torch.equal(found[0].loss, found[1].loss)
    pairs = (torch.autograd.grad(a.loss, list(own.net.parameters())) for a in found)
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_the_heads_loss_has_its_factor_and_where_r_is_t_is_that_of_every_r():
    found = {}
    for weight, every in ((1.0, True), (1.0, False), (3.0, False)):
        changes = {"head.weight": weight, "head.every_r": every, "times.prob_equal": 1.0}
        own = objective(EXPERIMENT.override(changes))
        found[weight, every] = own.terms(inputs_of(own)).loss
    assert torch.equal(found[1.0, True], found[1.0, False])
    inputs = inputs_of(own)
    *_, guided = own._guided(inputs.draws, inputs.labels, None, 1.0, own.v_hat)
    given = inputs.draws, inputs.labels, None, guided.velocity
    head = head_loss(own.experiment, own.net, *given) / 3
    torch.testing.assert_close(found[3.0, False] - found[1.0, False], 2 * head, rtol=1e-12, atol=0)


def test_intervals_are_whole_where_labels_are_dropped_or_r_is_t():
    labels = objective().labels(2)
    inputs = objective().inputs(2)
    whole = labels.dropped | (torch.arange(16) < inputs.draws.n_equal)
    assert inputs.draws.n_equal == 8 and 0 < whole.sum() < 16
    assert (labels.interval[whole] == torch.tensor([0.0, 1.0])).all()
    assert ((labels.interval[~whole] > 0) & (labels.interval[~whole] < 1)).all()
    without = EXPERIMENT.override(
        {"guidance.random_interval": False, "model.guided_interval": False}
    )
    plain = objective(without).inputs(2)  # the other draws are as they were
    assert plain.labels.interval is None and torch.equal(plain.labels.kappa, labels.kappa)
    assert torch.equal(plain.draws.t, inputs.draws.t) and torch.equal(plain.draws.e, inputs.draws.e)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_in_bfloat16_is_that_in_float32_to_its_rounding(compiled):
    """Gradients reach the head's float32 weights."""
    found = []
    for precision in ("float32", "bfloat16"):
        changes = {"compute.precision": precision, "compute.compile": compiled}
        own = objective(EXPERIMENT.override(changes), torch.float32)
        terms = own.terms(own.inputs(2))
        head = torch.autograd.grad(terms.loss, own.net.velocity_head.weight)[0]
        found.append((terms.squared_error, head))
    for a, b in zip(*found, strict=True):
        assert b.dtype == torch.float32 and 0 < (a - b).norm() < 0.05 * a.norm()


INFORMED = ("classes", "guided", "guided_interval", "velocity_head")
SMALL = {
    "mlp": EXPERIMENT.model,
    "unet": UNetConfig(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        dropout=0.2,
        **{name: getattr(EXPERIMENT.model, name) for name in INFORMED},
    ),
    "dit": DiTConfig(
        patch=4,
        width=16,
        depth=1,
        heads=2,
        **{name: getattr(EXPERIMENT.model, name) for name in INFORMED},
    ),
}


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("compute", [Compute(), Compute(compile=True), FAST], ids=str)
def test_u_and_the_head_come_out_of_one_pass(network, compute, monkeypatch):
    """With the loss and the gradient of two passes, to rounding: their sum is taken elsewhere."""
    experiment = replace(EXPERIMENT, model=SMALL[network], compute=compute)
    found = {}
    for passes in (1, 2):
        if passes == 2:
            monkeypatch.setattr(objective_module, "sharing_passes", nullcontext)
        own = objective(experiment, dtype=torch.float32)
        own.execution.arrange(own.net)
        inputs, with_graph = own.inputs(2), []
        first = {"mlp": "layers.0", "unet": "conv_in", "dit": "patches"}[network]
        own.net.get_submodule(first).register_forward_hook(
            lambda *_, seen=with_graph: seen.append(torch.is_grad_enabled())
        )
        torch.manual_seed(0)  # of dropout
        loss = own.terms(inputs).loss
        found[passes] = loss, torch.autograd.grad(loss, list(own.net.parameters()))
        assert sum(with_graph) == passes
    rounding = {"rtol": 0.02, "atol": 0.02} if compute == FAST else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found[1][0], found[2][0], **rounding)
    for one, two in zip(found[1][1], found[2][1], strict=True):
        torch.testing.assert_close(one, two, **rounding)
