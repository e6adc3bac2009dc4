"""Reads checkpoints of py-meanflow (github.com/Gsunshine/py-meanflow), Mean Flows on CIFAR-10.

Its network is the DDPM++ U-Net of EDM with the embeddings of t and t - r side by side, as is
``vamf.models.unet``; both take z = (1 - t) x + t e and return u, and both describe augmentations by
the same 6 numbers. Parameters have the same shapes and other names:

======================================  =====================
py-meanflow                             vamf
======================================  =====================
map_layer0, map_layer1                  map0, map1
map_augment                             augment
enc.32x32_conv                          conv_in
all other enc.*, in order               down.0, down.1, ...
dec.* without aux, in order             up.0, up.1, ...
dec.32x32_aux_norm, dec.32x32_aux_conv  norm_out, conv_out
of a block: norm2, qkv, proj            attention.norm, .qkv, .proj
======================================  =====================

A file holds several networks: ``net``, and its moving averages ``net_ema`` (with a decay of
0.9999), ``net_ema1`` (0.99995, whose FID of 2.80 is published), and ``net_ema2`` (0.9996).
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vamf.errors import first_line
from vamf.models.unet import UNetConfig

PUBLISHED = "net_ema1"
"""The network that is taken by default."""

FIRST = "map_layer0.weight"
"""A parameter of every network in a file."""

FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
"""What both networks halve and double images with, along each axis."""

NAMES = {
    "map_layer0": "map0",
    "map_layer1": "map1",
    "map_augment": "augment",
    "aux_norm": "norm_out",
    "aux_conv": "conv_out",
    "norm2": "attention.norm",
    "qkv": "attention.qkv",
    "proj": "attention.proj",
}
"""Names that differ."""

BLOCK = re.compile(r"(enc|dec)\.(\d+)x\d+_(conv|aux_\w+|down|up|in\d|block\d+)\.(.+)")
"""A parameter's name: part, resolution, block, and the name in the block."""


class PeerNetwork(NamedTuple):
    """A network of a file, in vamf's terms."""

    name: str
    model: UNetConfig
    shape: tuple[int, int, int]
    weights: dict[str, Tensor]
    equal_times: bool
    """Whether it was trained at r = t only."""


def read_py_meanflow(path: Path, average: str | None) -> PeerNetwork:
    """A network of a py-meanflow checkpoint, by default ``net_ema1``, or of its U-Net alone.

    Raises ValueError, in one line, if the file cannot be read without running code that it may
    contain, if it holds no such network, or if its network is another one.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no readable checkpoint: {first_line(error)}") from None
    state = found.get("model", found) if isinstance(found, Mapping) else {}
    networks = [name.removesuffix(FIRST) for name in state if str(name).endswith(FIRST)]
    if not networks:
        raise ValueError(
            f"init must be a run, a checkpoint, an exported file, or a checkpoint of py-meanflow; "
            f"{path} is none"
        )
    name, prefix = _chosen(path, networks, average)
    tensors = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    ratio = getattr(found.get("args"), "ratio", 1.0)  # the share of samples with r < t
    try:
        model, shape = _configuration(tensors)
        return PeerNetwork(name, model, shape, _renamed(tensors), ratio == 0)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"{path} holds another network than that of py-meanflow: {error}"
        ) from None


def _chosen(path: Path, prefixes: list[str], average: str | None) -> tuple[str, str]:
    """The name and the prefix of a network among those of a file."""
    named = {prefix.rstrip("."): prefix for prefix in prefixes}
    wanted = average if average is not None or len(named) == 1 else PUBLISHED
    name = next(iter(named)) if wanted is None else wanted
    if name not in named:
        known = ", ".join(filter(None, named)) or "one without a name"
        raise ValueError(f"init_average must be a network in {path}: {known}; got {name!r}")
    return name, named[name]


def _configuration(tensors: Mapping[str, Tensor]) -> tuple[UNetConfig, tuple[int, int, int]]:
    """The configuration of a U-Net and the shape of its images, from its parameters' shapes.

    py-meanflow's has one attention head. Dropout is not known, and is not taken over.
    """
    names = [match.groups() for match in map(BLOCK.fullmatch, tensors) if match]
    sizes = list(dict.fromkeys(int(size) for part, size, _, _ in names if part == "enc"))
    size = sizes[0]
    conv, out = tensors[f"enc.{size}x{size}_conv.weight"], f"dec.{size}x{size}_aux_conv.weight"
    blocks = {block for part, s, block, _ in names if part == "enc" and int(s) == size}
    widths = [len(tensors[f"enc.{s}x{s}_block0.conv0.weight"]) for s in sizes]
    augment = tensors.get("map_augment.weight")
    model = UNetConfig(
        channels=len(conv),
        multipliers=tuple(width // len(conv) for width in widths),
        blocks=sum(block.startswith("block") for block in blocks),
        attention=tuple(s for s in sizes if f"enc.{s}x{s}_block0.qkv.weight" in tensors),
        augmentations=0 if augment is None else augment.shape[1],
    )
    return model, (len(tensors[out]), size, size)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters under vamf's names; ValueError for one that the U-Net does not have."""
    indices: dict[str, dict[str, int]] = {"enc": {}, "dec": {}}
    renamed = {}
    for name, value in tensors.items():
        if name.endswith("resample_filter"):
            _require_filter(value)
            continue
        renamed[_name(name, indices)] = value
    return renamed


def _require_filter(value: Tensor) -> None:
    expected = FILTER.outer(FILTER)[None, None]
    if value.shape != expected.shape or not torch.allclose(value.float(), expected):
        raise ValueError(f"it resamples with {value.shape[-1]} numbers other than 1, 3, 3, 1")


def _name(name: str, indices: dict[str, dict[str, int]]) -> str:
    """vamf's name of a parameter; ``indices`` are those of the blocks that were met before."""
    match = BLOCK.fullmatch(name)
    if match is None:
        layer, _, rest = name.partition(".")
        return f"{NAMES[layer]}.{rest}"
    part, size, block, inner = match.groups()
    if block == "conv":
        return f"conv_in.{inner}"
    if block.startswith("aux"):
        return f"{NAMES[block]}.{inner}"
    found = indices[part]
    index = found.setdefault(f"{size}_{block}", len(found))
    layer, _, rest = inner.partition(".")
    return f"{ {'enc': 'down', 'dec': 'up'}[part] }.{index}.{NAMES.get(layer, layer)}.{rest}"
