"""Networks that take over another one's weights compute what it computed, to rounding."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from vamf.models.dit import DiTConfig
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.models.weight_transfer import transferred
from vamf.rng import generator

UNET = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0)
DIT = DiTConfig(patch=4, width=16, depth=2, heads=2)
MLP = MLPConfig(hidden=(16, 12), embedding=6)
KNOWN = {
    "y": torch.tensor([0, 2, 3, 1]),
    "kappa": torch.tensor([0.0, 0.3, 0.9, 0.5]).double(),
    "interval": torch.tensor([[0.0, 1.0], [0.3, 0.6], [0.5, 0.9], [0.1, 0.5]]).double(),
}
INTERVAL = {"classes": 3, "guided": True, "guided_interval": True}
EXACT = {"rtol": 0, "atol": 1e-12}
normal = partial(torch.randn, dtype=torch.float64)


def kind(value):
    return type(value).__name__ if hasattr(value, "build") else None


def shape_of(config):
    return (3,) if isinstance(config, MLPConfig) else (1, 8, 8)


def network(config, seed="there", scale=0.3):
    """A network in float64 whose weights are all random and none is small."""
    net = config.build(shape_of(config)).double().eval()
    g = generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(scale * normal(p.shape, generator=g))
    return net


def carried(there, here, **options):
    """Both networks, and the lines on what was changed."""
    old, new = network(there), network(here, "here")
    weights, lines = transferred(
        old.state_dict(), there, here, new.state_dict(), **{"without_gap": False} | options
    )
    new.load_state_dict(weights)
    return old, new, lines


def inputs(config):
    g = generator("inputs")
    z, t, s = normal(4, *shape_of(config), generator=g), *torch.rand(2, 4, generator=g).double()
    return z, t * s, t


def taken(config):
    """What a network takes besides z and the times."""
    names = ["y"] * (config.classes > 0) + ["kappa"] * config.guided
    names += ["interval"] * config.guided_interval
    known = {name: KNOWN[name] for name in names}
    augmented = getattr(config, "augmentations", 0)
    labels = {"augment_labels": normal(4, augmented, generator=generator("augment"))}
    return known | (labels if augmented else {})


SOURCES = [
    *(UNET, DIT, MLP),
    replace(DIT, classes=3, guided=True),
    replace(MLP, **INTERVAL),
    replace(UNET, classes=3, augmentations=6),
    replace(UNET, channels=32, classes=3, guided=True),
    *(replace(config, velocity_head=True) for config in (UNET, DIT, MLP)),
]


@pytest.mark.parametrize("config", SOURCES, ids=kind)
def test_u_is_the_velocity_at_every_r(config):
    """With labels, guidance scales and augmentations too, and all of t - r can be learnt."""
    old, new, lines = carried(config, config, without_gap=True)
    (z, r, t), known = inputs(config), taken(config)
    expected = old(z, t, t, **known)
    for gap in (r, t, torch.zeros_like(t)):
        torch.testing.assert_close(new(z, gap, t, **known), expected, **EXACT)
    assert (old(z, r, t, **known) - expected).abs().max() > 1e-3
    if config.velocity_head:
        torch.testing.assert_close(new.velocity(z, t), old.velocity(z, t), **EXACT)
    assert lines.keys() == {"r"} and "v(z, t) at every r" in lines["r"] and "lost" not in lines["r"]
    with torch.enable_grad():
        time = r.clone().requires_grad_()
        (new(z, time, t, **known) * z).sum().backward()
    learnt = {"UNet": "map0.weight", "DiT": "gap.second.weight", "MLP": "layers.0.weight"}
    gradient = new.get_parameter(learnt[type(new).__name__]).grad
    assert bool((gradient.abs().sum(0) > 0).all())


def test_what_does_not_fit_beside_the_sinusoids_is_lost_and_said():
    """A U-Net of 4 channels has 8 numbers for t - r, and its sinusoids span most of them."""
    small = replace(UNET, channels=4, classes=30)
    old, new, lines = carried(small, small, without_gap=True)
    z, r, t = inputs(small)
    y = torch.tensor([0, 7, 13, 29])
    torch.testing.assert_close(new(z, r, t, y), new(z, t, t, y), **EXACT)
    assert (new(z, t, t, y) - old(z, t, t, y)).abs().max() > 1e-6
    assert ", but for " in lines["r"] and " of what it adds for labels" in lines["r"]


@pytest.mark.parametrize("config", [UNET, DIT, MLP], ids=kind)
@pytest.mark.parametrize(
    ("there", "here", "old_takes", "new_takes"),
    [
        ({}, {"classes": 3}, (), ("y",)),
        ({}, {"classes": 3, "guided": True}, (), ("y", "kappa")),
        ({"classes": 3}, {}, (), ()),
        ({"classes": 3, "guided": True}, {}, (), ()),
        ({"classes": 5}, {"classes": 3}, (), ("y",)),
        ({"classes": 3, "guided": True}, {"classes": 3}, ("y",), ("y",)),
        ({"classes": 3}, {"classes": 3, "guided": True}, ("y",), ("y", "kappa")),
        (INTERVAL, {"classes": 3, "guided": True}, ("y", "kappa"), ("y", "kappa")),
        ({"classes": 3}, INTERVAL, ("y",), ("y", "kappa", "interval")),
        (INTERVAL, {}, (), ()),
    ],
)
def test_labels_and_scales_that_one_network_lacks_change_nothing(
    config, there, here, old_takes, new_takes
):
    """The old network is given no class, and no scale, where one of the two knows none."""
    old, new, lines = carried(replace(config, **there), replace(config, **here))
    at = inputs(config)
    expected = old(*at, **{name: KNOWN[name] for name in old_takes})
    found = new(*at, **{name: KNOWN[name] for name in new_takes})
    torch.testing.assert_close(found, expected, **EXACT)
    changed = {"labels"} if there.get("classes") != here.get("classes") else set()
    scales = {"guidance_scale"} if there.get("guided") != here.get("guided") else set()
    times = {"guidance_interval"} if "guided_interval" in there | here else set()
    assert lines.keys() == changed | scales | times and all(lines.values())


@pytest.mark.parametrize("config", [UNET, DIT, MLP], ids=kind)
def test_a_new_velocity_head_starts_as_u(config):
    old, new, lines = carried(config, replace(config, velocity_head=True))
    z, r, t = inputs(config)
    torch.testing.assert_close(new.velocity(z, t), old(z, t, t), **EXACT)
    assert torch.equal(new(z, r, t), old(z, r, t)) and lines.keys() == {"velocity_head"}
    old, new, lines = carried(replace(config, velocity_head=True), config)
    assert torch.equal(new(z, r, t), old(z, r, t)) and lines.keys() == {"velocity_head"}


@pytest.mark.parametrize(("there", "here"), [(0, 6), (6, 0), (9, 6)])
def test_augmentations_that_one_network_lacks_change_nothing(there, here):
    configs = (replace(UNET, augmentations=n) for n in (there, here))
    old, new, lines = carried(*configs)
    at, labels = inputs(UNET), normal(4, here, generator=generator("augment"))
    found = new(*at, augment_labels=labels) if here else new(*at)
    assert torch.equal(found, old(*at)) and lines.keys() == {"augment"}


@pytest.mark.parametrize("config", [UNET, DIT, MLP], ids=kind)
def test_the_same_network_keeps_its_weights_to_the_bit(config):
    old, new, lines = carried(config, config)
    ours, theirs = new.state_dict(), old.state_dict()
    assert lines == {} and all(torch.equal(ours[name], theirs[name]) for name in theirs)
