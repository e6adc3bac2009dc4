"""The checkpoints of py-meanflow: names and shapes as its code defines them, with random values.

Its own network and vamf's, with the same random weights under the key map, differ by 3.6e-7 of
values up to 1.3 in float32, with and without augment labels (as measured once by its code).
"""

import argparse

import pytest
import torch

from vamf.models.unet import UNetConfig
from vamf.presets import PRESETS
from vamf.rng import generator
from vamf.training.warm_start.source import read_source
from vamf.training.warm_start.start import resolved, start_networks

SMALL = UNetConfig(channels=8, multipliers=(1, 2), blocks=2, attention=(4,), augmentations=6)
ENCODER = ["8x8_block0", "8x8_block1", "4x4_down", "4x4_block0", "4x4_block1"]
DECODER = [
    *("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "4x4_block2"),
    *("8x8_up", "8x8_block0", "8x8_block1", "8x8_block2"),
]
"""Its names of the blocks, in their order."""

OF_BLOCK = {"attention.norm": "norm2", "attention.qkv": "qkv", "attention.proj": "proj"}
OF_NETWORK = {
    "map0": "map_layer0",
    "map1": "map_layer1",
    "augment": "map_augment",
    "conv_in": "enc.8x8_conv",
    "norm_out": "dec.8x8_aux_norm",
    "conv_out": "dec.8x8_aux_conv",
}


def peers_name(name):
    """py-meanflow's name of a parameter of vamf's."""
    layer, _, rest = name.partition(".")
    if layer not in ("down", "up"):
        return f"{OF_NETWORK[layer]}.{rest}"
    index, _, rest = rest.partition(".")
    inner, _, kind = rest.rpartition(".")
    part, blocks = ("enc", ENCODER) if layer == "down" else ("dec", DECODER)
    return f"{part}.{blocks[int(index)]}.{OF_BLOCK.get(inner, inner)}.{kind}"


def network(seed):
    """The parameters of one of its networks, by its names."""
    g = generator(seed)
    named = SMALL.build((1, 8, 8)).named_parameters()
    found = {peers_name(name): torch.randn(p.shape, generator=g) for name, p in named}
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    resampled = ("enc.4x4_down", "dec.8x8_up")
    filters = {
        f"{block}.{layer}.resample_filter": line.outer(line)[None, None]
        for block in resampled
        for layer in ("conv0", "skip")
    }
    return found | filters


def written(path, networks=("net", "net_ema", "net_ema1"), ratio=0.75, **changes):
    """A checkpoint with these networks; a change of None removes a parameter from all."""
    model = {"num_updates": torch.tensor(16)}
    for name in networks:
        tensors = network(name) | changes
        model |= {f"{name}.{n}": value for n, value in tensors.items() if value is not None}
    args = argparse.Namespace(ratio=ratio, lr=6e-4, ema_decays=[0.99995, 0.9996])
    torch.save({"model": model, "optimizer": {}, "epoch": 3, "args": args}, path)
    return path


@pytest.mark.parametrize("average", [None, "net_ema"])
def test_the_published_average_or_the_named_one_is_taken(average, tmp_path):
    path = written(tmp_path / "model.pth")
    source = read_source(path, average)
    assert (source.model, source.shape) == (SMALL, (1, 8, 8)) and not source.equal_times
    theirs, ours = network(average or "net_ema1"), source.weights
    assert len(ours) == len(theirs) - 4
    assert all(torch.equal(value, theirs[peers_name(name)]) for name, value in ours.items())
    assert source.described == f"{average or 'net_ema1'} of py-meanflow in {path}"


def test_a_run_starts_from_it(tmp_path):
    """Without its augment labels here; trained at r = t only, it starts with its velocity."""
    changes = {
        "model.channels": 8,
        "model.multipliers": [1, 2],
        "model.blocks": 2,
        "model.attention": [4],
        "init": str(written(tmp_path / "model.pth", ratio=0.0)),
    }
    experiment = PRESETS["digits"].override(changes)
    assert resolved(experiment) == experiment
    net = experiment.model.build((1, 8, 8))
    ema = torch.optim.swa_utils.AveragedModel(net)
    lines = start_networks(experiment, net, ema)
    assert lines.keys() == {"init", "init.r", "init.augment"}
    z, r, t = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.ones(2)
    torch.testing.assert_close(net(z, r, t), net(z, t, t), rtol=1e-5, atol=1e-5)


def test_the_u_net_alone_is_taken_too(tmp_path):
    torch.save(network("alone"), tmp_path / "unet.pt")
    assert torch.equal(
        read_source(tmp_path / "unet.pt").weights["conv_in.bias"],
        network("alone")["enc.8x8_conv.bias"],
    )


@pytest.mark.parametrize(
    ("average", "changes", "line"),
    [
        ("ema", {}, "init_average must be a network in .*: net, net_ema, net_ema1; got 'ema'"),
        (None, {"enc.4x4_block0.affine.weight": None}, "does not fit its own network: .*affine"),
        (None, {"enc.4x4_aux_down.x": torch.ones(1)}, "another network .*: 'aux_down'"),
        (
            None,
            {"map_label.weight": torch.ones(1)},
            "than that of py-meanflow: 'map_label'",
        ),
        (None, {"dec.8x8_up.conv0.resample_filter": torch.ones(1, 1, 2, 2)}, "resamples with 2 "),
    ],
)
def test_another_network_is_refused_in_one_line(average, changes, line, tmp_path):
    path = written(tmp_path / "model.pth", **changes)
    with pytest.raises(ValueError, match=line) as caught:
        read_source(path, average)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"model": network("net"), "args": pytest.raises}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="is no readable checkpoint"):
        read_source(tmp_path / "model.pth")
