"""Latents and an autoencoder for tests: real files, of random numbers."""

from pathlib import Path
from typing import Any

import torch

from vamf.data.shards import Index, write_shard
from vamf.rng import generator

INDEX = Index(
    vae="some/vae",
    vae_sha256="0" * 64,
    scaling=0.5,
    shape=(4, 4, 4),
    resolution=8,
    classes=3,
    count=10,
    shard=4,
    mirrored=True,
    dtype="float32",
    images="1" * 64,
)


def moments(index: Index, number: int) -> torch.Tensor:
    """Random means, and log-variances of about exp(-2)."""
    return torch.randn(index.arrays(number), generator=generator("moments", number)) - 1


def write_latents(root: Path, index: Index = INDEX) -> torch.Tensor:
    """A folder of latents of classes 0, 1, 2, 0, ...; returns all moments."""
    root.mkdir(parents=True)
    index.save(root)
    parts = [moments(index, number) for number in index.shards]
    for number, part in enumerate(parts):
        labels = torch.tensor(index.of(number)) % max(index.classes, 1)
        write_shard(root, index, number, part, labels)
    return torch.cat(parts)


def write_vae(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A real AutoencoderKL of random weights that halves images once, in diffusers' own format."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoencoderKL(
            **{
                "in_channels": 3,
                "out_channels": 3,
                "latent_channels": 4,
                "block_out_channels": (8, 8),
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "norm_num_groups": 4,
            }
            | config
        ).save_pretrained(folder)
    return folder
