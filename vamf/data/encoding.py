"""Encodes a folder of images to latents on disk, shard by shard; can be interrupted and resumed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vamf.data.image_files import image_files
from vamf.data.image_folder import ImageFolder
from vamf.data.shards import Index, begin, intact, write_shard
from vamf.data.streaming import FileSet
from vamf.data.vae import VAE
from vamf.files import shown
from vamf.typing import Pixels

AT_ONCE = 128
"""How many files are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a folder of images becomes latents."""

    size: int = 256
    """Height and width: images are scaled by their shorter side, then cut."""
    mirror: bool = True
    """Encodes each image's mirror image too."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored moments; float16 halves their size (84 GB for ImageNet)."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What to do with files that are not images: `refuse` stops and names them, `skip` uses the
    next good one of the class instead."""
    shard: int = 4096
    """Images in a shard; an interrupted job loses at most one shard."""
    part: tuple[int, int] = (0, 1)
    """Index of this process and number of processes, such as `0 8`: each encodes its own shards,
    into one folder that all of them share."""

    def __post_init__(self) -> None:
        mine, all_of_them = self.part
        if self.size < 1 or self.shard < 1 or not 0 <= mine < all_of_them:
            raise ValueError(
                "encoding needs size and shard >= 1, and a part of 0 N, ..., N-1 N; "
                f"got {self.size}, {self.shard} and {mine} {all_of_them}"
            )

    def folder(self, root: Path) -> ImageFolder:
        """The images, labelled if there are class subfolders."""
        files = [path.relative_to(root) for path in image_files(root)]
        classes = len({path.parts[0] for path in files if len(path.parts) > 1})
        size, damaged = self.size, self.damaged
        return ImageFolder(root=root, size=size, classes=classes, damaged=damaged, memory_gb=0.0)


def plan(encoding: Encoding, folder: ImageFolder, images: FileSet, vae: VAE) -> Index:
    """The index of the latents; ValueError for a size that the VAE cannot divide evenly."""
    channels, height, width = vae.encode(images.pixels([0])).shape[1:]
    if encoding.size % (factor := encoding.size // height):
        raise ValueError(f"size must be a multiple of {factor} for {vae.name}; got {encoding.size}")
    names = [str(path.relative_to(folder.root)) for path in images.files]
    return Index(
        vae=vae.name,
        vae_sha256=vae.sha256,
        scaling=vae.scaling,
        shape=(channels // 2, height, width),
        resolution=encoding.size,
        classes=folder.classes,
        count=len(images),
        shard=encoding.shard,
        mirrored=encoding.mirror,
        dtype=encoding.dtype,
        images=hashlib.sha256(repr((names, images.cut)).encode()).hexdigest(),
    )


def encode(encoding: Encoding, root: Path, out: Path, vae: VAE) -> Iterator[str]:
    """Encodes the images below ``root`` into ``out``; yields a line for each shard, then how to
    train on them.

    Intact shards are not encoded again. Raises ValueError for images that cannot be used, and if
    ``out`` holds latents of other images, of another VAE or with other settings.
    """
    folder = encoding.folder(root)
    images = folder.load("train")
    assert isinstance(images, FileSet)  # as memory_gb is 0
    index = plan(encoding, folder, images, vae)
    begin(index, out)
    mine, step = encoding.part
    for number in index.shards[mine::step]:
        there = intact(out, index, number)
        if not there:
            _encode_shard(index, number, images, vae, out)
        done = "is there" if there else "encoded"
        yield f"shard {number + 1} of {len(index.shards)}, {len(index.of(number))} images: {done}"
    then = "train on them" if step == 1 else "once the other parts are there, train on them"
    yield (
        f"{then}: --data.root {shown(out)} --data.images {shown(root)} --data.vae {vae.name} "
        f"--data.channels {index.shape[0]} --data.size {index.shape[1]} "
        f"--data.resolution {index.resolution} --data.classes {index.classes}"
    )


def _encode_shard(index: Index, number: int, images: FileSet, vae: VAE, out: Path) -> None:
    places = index.of(number)
    parts = []
    for start in range(0, len(places), AT_ONCE):
        pixels = images.pixels(places[start : start + AT_ONCE])
        parts.append(torch.stack([vae.encode(view).cpu() for view in _views(pixels, index)], dim=1))
    labels = images.labels[places.start : places.stop]
    write_shard(out, index, number, torch.cat(parts), labels)


def _views(pixels: Pixels, index: Index) -> list[Pixels]:
    return [pixels, pixels.flip(3)] if index.mirrored else [pixels]
