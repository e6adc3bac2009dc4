"""Conditional networks: what labels change, and that nothing changes without classes."""

from dataclasses import replace

import pytest
import torch

from vamf.flow.derivatives import total_derivative
from vamf.flow.duals import dual_mode
from vamf.flow.guidance import with_labels
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import Draws
from vamf.flow.tangents import boundary_velocity
from vamf.models.dit import DiTConfig
from vamf.models.layers import ClassEmbedding
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.rng import generator

CLASSES, N = 3, 4
SHAPE = (1, 8, 8)
MODELS = {
    "mlp": MLPConfig(hidden=(32,), embedding=6, classes=CLASSES),
    "unet": UNetConfig(
        channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0, classes=CLASSES
    ),
    "dit": DiTConfig(patch=4, width=16, depth=1, heads=2, classes=CLASSES),
}
MODEL = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
Y = torch.tensor([2, 0, 1, 2])
KAPPA = torch.tensor([0.5, 0.0, 0.875, 0.2], dtype=torch.float64)
"""1 - 1 / scale, for networks that take the guidance scale."""
INTERVAL = torch.tensor([[0.0, 1.0], [0.3, 0.6], [0.5, 0.9], [0.1, 0.5]], dtype=torch.float64)
"""The times of guidance, for networks that take them."""
TOLD = {"guided": True, "guided_interval": True}


def build(config, dtype=torch.float64):
    torch.manual_seed(0)
    net = config.build(SHAPE)
    with torch.no_grad():
        for p in net.parameters():  # at the start outputs are nearly 0
            p.add_(torch.randn_like(p) / 4)
    return net.to(dtype)


def inputs(dtype=torch.float64):
    g = generator("labels")
    z = torch.randn(N, *SHAPE, generator=g).to(dtype)
    times = torch.rand(2, N, generator=g).to(dtype)
    return z, times.amin(0), times.amax(0)


@MODEL
def test_no_label_is_the_class_after_the_last(config):
    net, (z, r, t) = build(config), inputs()
    assert torch.equal(net(z, r, t), net(z, r, t, torch.full((N,), CLASSES)))
    assert torch.equal(net(z, r, t), net(z, r, t, None))


@MODEL
def test_every_class_has_its_own_velocity(config):
    net, (z, r, t) = build(config), inputs()
    outputs = torch.stack([net(z, r, t, torch.full((N,), y)) for y in range(CLASSES + 1)])
    assert (torch.pdist(outputs.flatten(1)) > 1e-3).all()


@MODEL
def test_labels_belong_to_their_samples(config):
    net, (z, r, t) = build(config), inputs()
    whole = net(z, r, t, Y)
    for i in range(N):
        alone = net(z[i : i + 1], r[i : i + 1], t[i : i + 1], Y[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-10, atol=1e-12)  # rounding


@MODEL
def test_labelled_jvp_is_the_central_difference(config):
    net, (z, r, t) = build(config), inputs()
    u, v, h = with_labels(net, Y), torch.cos(z), 1e-5
    with torch.no_grad():
        value, du_dt = total_derivative(u, z, r, t, v)
        difference = (u(z + h * v, r, t + h) - u(z - h * v, r, t - h)) / (2 * h)
    assert torch.equal(value, net(z, r, t, Y))
    # Truncation and rounding of about 1e-10 for numbers of order 1; group norms make it larger.
    torch.testing.assert_close(du_dt, difference, rtol=0, atol=1e-5 * du_dt.abs().max().item())


@MODEL
def test_only_the_vectors_of_present_classes_get_a_gradient(config):
    net, (z, r, t) = build(config), inputs()
    net(z, r, t, torch.tensor([0, 0, 2, CLASSES])).square().sum().backward()
    used = net.labels.table.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, True, True]


@MODEL
def test_bfloat16_weights_take_labels(config):
    net, (z, r, t) = build(config, torch.bfloat16), inputs(torch.float32)
    exact = build(config, torch.float32)(z, r, t, Y)
    rounded = net(z, r, t, Y)
    assert rounded.dtype == torch.float32 and (rounded - exact).norm() / exact.norm() < 0.1


@MODEL
def test_a_network_may_take_a_guidance_scale(config):
    """None is a scale of 1; each is another velocity, of its own sample."""
    net, (z, r, t) = build(replace(config, guided=True)), inputs()
    whole = net(z, r, t, Y, KAPPA)
    assert torch.equal(net(z, r, t, Y), net(z, r, t, Y, torch.zeros(N)))
    assert torch.equal(net(z, r, t), net(z, r, t, None, torch.zeros(N)))
    for i in range(N):
        alone = net(*(a[i : i + 1] for a in (z, r, t, Y, KAPPA)))
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-10, atol=1e-12)  # rounding
    scales = torch.linspace(0, 0.9, 5, dtype=torch.float64)
    outputs = torch.stack([net(z, r, t, Y, k.expand(N)) for k in scales])
    assert (torch.pdist(outputs.flatten(1)) > 1e-3).all()
    with pytest.raises(ValueError, match="takes no guidance scale; its config is not guided"):
        build(config)(z, r, t, Y, KAPPA)
    with pytest.raises(ValueError, match="takes the guidance scale needs classes; got 0"):
        replace(config, guided=True, classes=0)


@MODEL
def test_a_network_may_take_the_times_of_guidance(config):
    """None is [0, 1], to the bit; each end is another velocity, of its own sample."""
    net, (z, r, t) = build(replace(config, **TOLD)), inputs()
    whole = torch.tensor([0.0, 1.0]).double().expand(N, 2)
    assert torch.equal(net(z, r, t, Y, KAPPA), net(z, r, t, Y, KAPPA, whole))
    assert torch.equal(net(z, r, t), net(z, r, t, None, None, whole))
    found = net(z, r, t, Y, KAPPA, INTERVAL)
    for i in range(N):
        alone = net(*(a[i : i + 1] for a in (z, r, t, Y, KAPPA, INTERVAL)))
        torch.testing.assert_close(alone, found[i : i + 1], rtol=1e-10, atol=1e-12)  # rounding
    outputs = [net(z, r, t, Y, KAPPA, whole)]
    for end in range(2):
        moved = whole.clone()
        moved[:, end] = 0.5
        outputs.append(net(z, r, t, Y, KAPPA, moved))
    assert (torch.pdist(torch.stack(outputs).flatten(1)) > 1e-3).all()
    with pytest.raises(ValueError, match="takes no interval of guidance; its config has no"):
        build(replace(config, guided=True))(z, r, t, Y, KAPPA, INTERVAL)


@MODEL
def test_a_velocity_head_knows_labels_and_r(config):
    """As u does: it shares all but the last layer; r is t by default."""
    net, (z, r, t) = build(replace(config, velocity_head=True, **TOLD)), inputs()
    known = Y, KAPPA, INTERVAL
    assert torch.equal(net.velocity(z, t), net.velocity(z, t, *(None for _ in known), r=t))
    net.velocity_head = net.conv_out if hasattr(net, "conv_out") else getattr(net, "out", None)
    net.velocity_head = net.velocity_head or net.head
    for carry in (False, True):
        with dual_mode(carry):
            found, u = net.velocity(z, t, *known, r=r), net(z, r, t, *known)
        torch.testing.assert_close(found, u, rtol=1e-12, atol=0)


@MODEL
def test_jvp_of_a_guided_network_is_the_central_difference(config):
    net, (z, r, t) = build(replace(config, **TOLD)), inputs()
    u, v, h = with_labels(net, Y, KAPPA, INTERVAL), torch.cos(z), 1e-5
    with torch.no_grad():
        value, du_dt = total_derivative(u, z, r, t, v)
        with dual_mode():
            carried = total_derivative(u, z, r, t, v)
        difference = (u(z + h * v, r, t + h) - u(z - h * v, r, t - h)) / (2 * h)
    assert torch.equal(value, net(z, r, t, Y, KAPPA, INTERVAL))
    torch.testing.assert_close(du_dt, difference, rtol=0, atol=1e-5 * du_dt.abs().max().item())
    for a, b in zip(carried, (value, du_dt), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)  # rounding


@MODEL
def test_a_step_with_carried_tangents_and_labels_is_that_of_torchs_jvp(config):
    net, (z, r, t) = build(config), inputs()
    d = Draws(z, torch.cos(z), torch.cat([t[:1], r[1:]]), t, 1)
    velocity, loss = boundary_velocity(net), MeanFlowLoss()

    def step():
        u, v_hat = with_labels(net, Y), with_labels(velocity, Y)
        return loss(u, d, beta=0.5, v_hat=v_hat).loss

    with dual_mode():
        carried = step()
    torch.testing.assert_close(carried, step(), rtol=1e-10, atol=0)  # rounding


@pytest.mark.parametrize("kind", [MLPConfig, UNetConfig])
def test_networks_without_classes_have_nothing_of_them(kind):
    small = {"channels": 8, "multipliers": (1,), "blocks": 1} if kind is UNetConfig else {}
    net, (z, r, t) = kind(**small).build(SHAPE), inputs(torch.float32)
    assert net.labels is None and not any("labels" in name for name in net.state_dict())
    with pytest.raises(ValueError, match="takes no labels; its config has classes = 0"):
        net(z, r, t, Y)
    with pytest.raises(ValueError, match="classes must be at least 0; got -1"):
        kind(classes=-1)


def test_unet_starts_from_the_weights_that_it_has_without_classes():
    """The table is drawn last: the rest of the network is initialised as without it."""
    states = []
    for classes in (0, CLASSES):
        torch.manual_seed(5)
        config = UNetConfig(channels=8, multipliers=(1,), blocks=1, classes=classes)
        states.append(config.build(SHAPE).state_dict())
    assert set(states[1]) - set(states[0]) == {"labels.table.weight"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_embedding_is_a_row_of_the_table():
    embedding = ClassEmbedding(2, 5)
    rows = embedding.table.weight
    assert rows.shape == (3, 5)
    assert torch.equal(embedding(torch.tensor([1, 2, 0]), 3), rows[[1, 2, 0]])
    assert torch.equal(embedding(None, 2), rows[[2, 2]])
