"""Augment labels of a U-Net: their effect, and that a U-Net without them is unchanged."""

import pytest
import torch

from vamf.flow.derivatives import total_derivative
from vamf.flow.guidance import with_augment_labels, with_labels
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import Draws
from vamf.flow.tangents import boundary_velocity
from vamf.models.unet import UNetConfig
from vamf.presets import PRESETS
from vamf.rng import generator

N, SHAPE = 4, (3, 8, 8)
SMALL = UNetConfig(
    channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0, augmentations=6
)
G = generator("told")
AUGMENT_LABELS = torch.randn(N, 6, generator=G)
Y = torch.tensor([2, 0, 1, 2])


def build(config=SMALL, dtype=torch.float64):
    torch.manual_seed(0)
    net = config.build(SHAPE)
    with torch.no_grad():
        for p in net.parameters():  # at the start outputs are nearly 0
            p.add_(torch.randn_like(p) / 4)
    return net.to(dtype)


def inputs():
    g = generator("told inputs")
    z = torch.randn(N, *SHAPE, generator=g).double()
    times = torch.rand(2, N, generator=g).double()
    return z, times.amin(0), times.amax(0)


@pytest.mark.parametrize("name", ["cifar10", "cifar10_cond"])
def test_the_cifar_network_has_as_many_parameters_as_published(name):
    """55.93 million; py-meanflow's map of the 6 numbers is to all 512 of the times."""
    config = PRESETS[name].model
    with torch.device("meta"):
        net = config.build((3, 32, 32))
        plain = UNetConfig(classes=config.classes).build((3, 32, 32))
    count, without = (sum(p.numel() for p in each.parameters()) for each in (net, plain))
    assert count - without == 6 * 512
    labels = 11 * 512 if config.classes else 0
    assert round((count - labels) / 1e6, 2) == 55.93


def test_no_augment_labels_equal_zeros():
    net, (z, r, t) = build(), inputs()
    assert torch.equal(net(z, r, t), net(z, r, t, augment_labels=torch.zeros(N, 6).double()))
    assert not torch.allclose(net(z, r, t), net(z, r, t, augment_labels=AUGMENT_LABELS))


def test_every_number_counts_and_belongs_to_its_sample():
    net, (z, r, t) = build(), inputs()
    whole = net(z, r, t, augment_labels=AUGMENT_LABELS)
    for i in range(N):
        part = slice(i, i + 1)
        alone = net(z[part], r[part], t[part], augment_labels=AUGMENT_LABELS[part])
        torch.testing.assert_close(alone, whole[part], rtol=1e-10, atol=1e-12)  # rounding
    for k in range(6):
        changed = AUGMENT_LABELS.clone()
        changed[:, k] += 1
        assert (net(z, r, t, augment_labels=changed) - whole).abs().flatten(1).amax(1).min() > 1e-6


def test_jvp_is_the_central_difference():
    net, (z, r, t) = build(), inputs()
    u, v, h = with_augment_labels(net, AUGMENT_LABELS, 2), torch.cos(z), 1e-5
    with torch.no_grad():
        value, du_dt = total_derivative(u, z, r, t, v)
        difference = (u(z + h * v, r, t + h) - u(z - h * v, r, t - h)) / (2 * h)
    assert torch.equal(value, net(z, r, t, augment_labels=AUGMENT_LABELS))
    torch.testing.assert_close(du_dt, difference, rtol=0, atol=1e-5 * du_dt.abs().max().item())


def test_the_map_gets_a_gradient_through_a_loss():
    net, (z, r, t) = build(), inputs()
    d = Draws(z, torch.cos(z), torch.cat([t[:1], r[1:]]), t, 1)
    v_hat = with_augment_labels(boundary_velocity(net), AUGMENT_LABELS, 1)
    MeanFlowLoss()(
        with_augment_labels(net, AUGMENT_LABELS, 2), d, beta=0.5, v_hat=v_hat
    ).loss.backward()
    assert net.augment.weight.grad.abs().sum(0).min() > 0


def test_labels_and_augment_labels_go_together():
    net, (z, r, t) = build(UNetConfig(**{**SMALL.__dict__, "classes": 3})), inputs()
    u = with_labels(with_augment_labels(net, AUGMENT_LABELS, 2), Y)
    velocity = with_labels(with_augment_labels(boundary_velocity(net), AUGMENT_LABELS, 1), Y)
    assert torch.equal(u(z, r, t), net(z, r, t, Y, augment_labels=AUGMENT_LABELS))
    assert torch.equal(velocity(z, t), net(z, t, t, Y, augment_labels=AUGMENT_LABELS))
    # Without the first samples, which have r = t: the labels of the last ones.
    assert torch.equal(
        u(z[1:], r[1:], t[1:]), net(z[1:], r[1:], t[1:], Y[1:], augment_labels=AUGMENT_LABELS[1:])
    )


def test_the_map_is_drawn_last():
    states = []
    for augmentations in (0, 6):
        torch.manual_seed(5)
        config = UNetConfig(channels=8, multipliers=(1,), blocks=1, augmentations=augmentations)
        states.append(config.build(SHAPE).state_dict())
    assert set(states[1]) - set(states[0]) == {"augment.weight"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_fewer_than_no_numbers_are_refused():
    with pytest.raises(ValueError, match="augmentations must be at least 0; got -1"):
        UNetConfig(augmentations=-1)


def test_weights_of_a_map_to_t_alone_give_the_same_function():
    """As saved before the map reached t - r: that half of it is 0."""
    net, (z, r, t) = build(), inputs()
    old = {name: value.clone() for name, value in net.state_dict().items()}
    old["augment.weight"] = old["augment.weight"][: 2 * SMALL.channels]
    with torch.no_grad():
        net.augment.weight[2 * SMALL.channels :] = 0
    read = build()
    read.load_state_dict(old)
    assert torch.equal(
        read(z, r, t, augment_labels=AUGMENT_LABELS), net(z, r, t, augment_labels=AUGMENT_LABELS)
    )
    assert len(old["augment.weight"]) == 2 * SMALL.channels  # the input is not modified
