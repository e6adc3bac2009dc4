"""All evaluations of a step have the same masks of dropout: closed forms, and two routes."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from vamf.diagnostics.probe import ProbeTarget, probe_pair
from vamf.diagnostics.variance import flat_gradient, mean_gradient
from vamf.dropout import Masks, mask_of, sharing, without_dropout
from vamf.flow.duals import dual_mode
from vamf.flow.guidance import Guidance
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import Draws
from vamf.flow.tangents import boundary_velocity
from vamf.models.layers import Dropout, Linear
from vamf.models.unet import UNetConfig
from vamf.presets import PRESETS
from vamf.rng import generator
from vamf.training.step.trainer import Trainer

P, GAP, W, T = 0.25, 0.3, 0.7, 0.8
SAMPLES, DIM = 20_000, 8


class Diagonal(nn.Module):
    """u(z, r, t) = W dropout(z), of which every expectation over masks is known."""

    def __init__(self):
        super().__init__()
        self.dropout, self.linear = Dropout(P), Linear(DIM, DIM, bias=False)
        nn.init.eye_(self.linear.weight).data.mul_(W)

    def forward(self, z, r, t):
        return self.linear(self.dropout(z))


def repeated():
    """One sample with r < t, often, so that a mean over the batch is one over masks."""
    x, e = (torch.randn(DIM, generator=generator("dropout", k)).double() for k in range(2))
    t = torch.full((SAMPLES,), T).double()
    return Draws(x.expand(SAMPLES, DIM), e.expand(SAMPLES, DIM), t - GAP, t), x, e


def terms_of(loss, beta, carried):
    net, (draws, x, e) = Diagonal().double(), repeated()
    torch.manual_seed(0)
    with dual_mode(carried), sharing(Masks(SAMPLES)):
        terms = loss(net, draws, beta=beta, v_hat=boundary_velocity(net), progress=0.5)
    return terms, (1 - T) * x + T * e, e - x


def near(values, expected):
    """Within five standard errors of the mean over masks."""
    error = values.std() / SAMPLES**0.5
    assert error > 0 and abs(values.mean() - expected) < 5 * error


CARRIED = pytest.mark.parametrize("carried", [False, True], ids=["eager", "carried"])


@CARRIED
def test_value_and_derivative_have_the_same_masks(carried):
    """V = W D(z + gap v), D a mask over 1 - p; two masks would give E|V - v|^2 another z.v."""
    terms, z, v = terms_of(MeanFlowLoss(), 0.0, carried)
    a = z + GAP * v
    expected = W**2 * a.dot(a) / (1 - P) - 2 * W * a.dot(v) + v.dot(v)
    near(terms.squared_error, expected)
    near(terms.squared_correction, (GAP * W) ** 2 * v.dot(v) / (1 - P))


@CARRIED
def test_the_networks_own_proxy_has_the_masks_of_the_pass(carried):
    """gap W D(W D(z)): a mask squared is itself; two masks would give (1 - p)^-2, not ^-3."""
    terms, z, _ = terms_of(MeanFlowLoss(), 1.0, carried)
    near(terms.squared_correction, (GAP * W * W) ** 2 * z.dot(z) / (1 - P) ** 3)


@pytest.mark.parametrize("alpha", [0.006, 0.5])
def test_alpha_flow_takes_the_difference_of_one_function(alpha):
    """(1 - alpha) / alpha W D(z - z_s) with z - z_s = alpha gap v: no noise of masks is divided."""
    terms, _, v = terms_of(AlphaFlowLoss(alpha=AlphaSchedule(value=alpha)), 0.0, False)
    near(terms.squared_correction, ((1 - alpha) * GAP * W) ** 2 * v.dot(v) / (1 - P))


def test_masks_are_those_of_the_last_samples_in_every_layout():
    layer, x = Dropout(P), torch.ones(6, 3, 4, 5)
    with sharing(Masks(6)):
        whole = layer(x)
        assert torch.equal(layer(x[2:]), whole[2:])
        assert torch.equal(layer(x.to(memory_format=torch.channels_last)), whole)
    assert set(whole.unique().tolist()) == {0.0, torch.tensor(1 / (1 - P)).item()}
    assert not torch.equal(layer(x), layer(x))  # nothing is shared outside


def test_masks_of_chosen_samples():
    layer, x, rows = Dropout(P), torch.ones(6, 50), torch.tensor([4, 0])
    masks = Masks(6)
    with sharing(masks):
        whole = layer(x)
    with sharing(masks.at(rows)):
        assert torch.equal(layer(x[rows]), whole[rows])
    with pytest.raises(ValueError, match="masks of 2 samples were asked for 6"):
        masks.at(rows).of(layer, x, P)


def test_without_dropout_is_evaluation_mode():
    layer, x = Dropout(P), torch.ones(4, 50)
    with sharing(Masks(4)):
        assert torch.equal(without_dropout(layer)(x), x)
        assert not torch.equal(layer(x), x)
    assert mask_of(layer.eval(), x, P) is None


DIGITS = PRESETS["digits"].override(
    {"model.channels": 8, "model.blocks": 1, "model.dropout": 0.2, "batch": 8, "beta.value": 0.5}
)


def move(net, scale):
    for k, parameter in enumerate(net.parameters()):
        noise = torch.randn(parameter.shape, generator=generator("moved", k))
        parameter.data.add_(scale * noise.to(parameter.dtype))


def moved(experiment):
    """An objective whose weights are no longer those at the start, which give nearly 0."""
    own = Trainer(experiment, experiment.data.load("train"))
    move(own.net, 0.05)
    return own.objective


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"proxy": "ema"},
        {"model.augmentations": 6, "augment.kind": "Augmentation"},
        {"model.classes": 10, "guidance.cfg_kappa": 0.5, "guidance.omega": 0.7},
        {"loss.anchor.weight": 0.5, "loss.trace.probes": 1},
        {"loss.kind": "SemigroupLoss", "beta.value": 0.0},
        {"loss.kind": "TerminalVelocityLoss", "loss.stop_derivative": True, "beta.value": 0.0},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_an_eager_step_is_the_compiled_one(changes):
    """To rounding, with the same seed: both draw the same masks in the same order."""
    found = []
    for compiled in (False, True):
        experiment = DIGITS.override({**changes, "compute.compile": compiled})
        objective = moved(experiment).double()
        objective.train()
        double = lambda a: a.double() if a.is_floating_point() else a  # noqa: E731
        inputs = tree_map_only(torch.Tensor, double, objective.inputs(0))
        torch.manual_seed(5)
        terms = objective.terms(inputs)
        found.append((terms.squared_error, flat_gradient(terms.loss, objective.net.parameters())))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-8, atol=1e-10)


def test_guidance_takes_the_networks_velocity_without_dropout():
    """As the authors' code, which evaluates it with train=False."""
    objective = moved(DIGITS.override({"model.classes": 10, "guidance.cfg_kappa": 0.5}))
    inputs, targets = objective.inputs(0), []
    assert objective.experiment.guidance == Guidance(cfg_kappa=0.5)
    for mode in (True, True, False):
        objective.net.train(mode)
        u, _, guided = objective._guided(inputs.draws, inputs.labels, None, 0.5, objective.v_hat)
        targets.append(guided.velocity)
    assert torch.equal(targets[0], targets[1]) and torch.equal(targets[0], targets[2])
    objective.net.train()
    d = inputs.draws
    assert not torch.equal(u(d.x, d.r, d.t), u(d.x, d.r, d.t))  # while the loss has masks


NET = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.4)
EDGES = (0.0, 0.5, 1.0)


def probed():
    net = NET.build((1, 4, 4)).double().train()
    move(net, 0.2)
    return net


def batch(key):
    g = generator("probed batch", key)
    x, e = torch.randn(2, 6, 1, 4, 4, generator=g).double()
    t = torch.rand(6, generator=g).double()
    return Draws(x, e, torch.cat([t[:2], 0.4 * t[2:]]), t, 2)


def test_a_probe_compares_rows_under_the_same_masks():
    """Of losses and gradients at every beta, what the loss itself gives with those masks."""
    net, pair, beta = probed(), (batch(0), batch(1)), 0.7
    own = boundary_velocity(net)
    torch.manual_seed(0)
    tables = probe_pair(
        ProbeTarget(net, list(net.parameters()), own), pair, EDGES, generator("signs")
    )
    torch.manual_seed(0)
    gradients, losses = [], []
    for draws in pair:
        with sharing(Masks(len(draws.x))):
            found = MeanFlowLoss()(net, draws, beta=beta, v_hat=own)
        losses.append(found.squared_error.mean() / draws.x[0].numel())
        gradients.append(flat_gradient(found.loss, net.parameters()) / draws.x[0].numel())
    powers = torch.tensor([1.0, beta, beta**2]).double()
    torch.testing.assert_close(tables.first[0].sum(0) @ powers, sum(losses) / 2)
    bins = len(EDGES) - 1
    weights = torch.tensor([1.0] * bins + [beta] * bins + [0.0] * bins).double()
    weights[bins : 2 * bins] = beta
    torch.testing.assert_close(
        weights @ tables.crossed[0] @ weights, gradients[0].dot(gradients[1]), rtol=1e-9, atol=0
    )


def test_the_mean_gradient_is_that_of_one_function():
    net, draws = probed(), batch(2)
    torch.manual_seed(0)
    found = mean_gradient(net, draws, 0.3, boundary_velocity(net))
    torch.manual_seed(0)
    with sharing(Masks(len(draws.x))):
        loss = MeanFlowLoss()(net, draws, beta=0.3, v_hat=boundary_velocity(net)).loss
    expected = flat_gradient(loss, net.parameters()) / draws.x[0].numel()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
