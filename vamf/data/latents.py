"""Latents of images as a data set: each use of an image draws its posterior anew."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vamf import serialization
from vamf.data import vae
from vamf.data.dataset import WHOLE, Split, check_labels, require_positive, to_device
from vamf.data.image_files import require_folder
from vamf.data.image_folder import ImageFolder
from vamf.data.shards import INDEX, Index, Shards, write_shard
from vamf.data.shuffle import Order
from vamf.data.streaming import Ahead
from vamf.flow.oracle import EmpiricalVelocity
from vamf.rng import generator
from vamf.typing import Label, Sample

THREADS = 4
"""Parts of a batch that are read at once: disks take several requests, and nothing is decoded."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Images encoded by an autoencoder of Stable Diffusion, as `jobs.encode` writes them.

    Each use of an image draws its latent anew, from the posterior of the image or of its mirror
    image, and scales it. Samples are decoded before they are measured or shown.
    """

    has_exact_velocity: ClassVar[bool] = False
    """The velocity of latents, a sum over all images, is not offered."""
    decoder_packages: ClassVar[tuple[str, ...]] = ("diffusers",)
    """What the autoencoder is loaded by."""

    root: Path = Path("data/latents")
    """Folder of the training latents."""
    test: Path | None = None
    """Folder of held-out latents; without one the training latents are used."""
    images: Path = Path("data/images")
    """Folder of the images that were encoded, with which distances compare samples."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """The autoencoder: a repository of the Hugging Face hub, or a folder; latents that another one
    encoded are refused."""
    channels: int = 4
    """Channels of a latent."""
    size: int = 32
    """Height and width of a latent."""
    resolution: int = 256
    """Height and width of the images."""
    classes: int = 1000
    """Number of classes; 0 for latents without labels."""
    mirror: bool = True
    """Uses each image's mirror image half of the time."""

    def __post_init__(self) -> None:
        if min(self.channels, self.size, self.resolution) < 1 or self.classes < 0:
            raise ValueError(
                "latents need channels, size and resolution >= 1, and classes >= 0; "
                f"got {self.channels}, {self.size}, {self.resolution} and {self.classes}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a latent."""
        return (self.channels, self.size, self.size)

    @property
    def reference_images(self) -> ImageFolder:
        """The images that were encoded, cut in the same way."""
        return ImageFolder(root=self.images, size=self.resolution)

    def velocity(self) -> EmpiricalVelocity:
        """Raises ValueError: the exact velocity is not offered for latents."""
        raise ValueError(f"latents have no closed-form velocity; got {self.root}")

    def load(self, split: Split) -> "LatentSet":
        """The latents of one split, sorted by the names of their images.

        Raises ValueError if they are missing, damaged, or differ from this description.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        return _load(self, self.test if split == "test" and self.test else self.root)

    @property
    def decoder_name(self) -> str:
        """The autoencoder."""
        return self.vae

    def decoder_fingerprint(self, device: torch.device) -> str:
        """SHA-256 of the autoencoder's weights. Raises ValueError if it is missing."""
        return vae.load(self.vae, device).sha256

    def located(self) -> Self:
        """The same with an absolute path if the autoencoder is a folder."""
        return replace(self, vae=vae.located(self.vae))

    def prepare(self, compared: bool) -> None:
        """Finds the autoencoder, and the images if samples are ``compared`` with them.

        Raises ValueError if one is missing.
        """
        self.decoder(torch.device("cpu"))
        if compared:
            require_folder(self.images)

    def decoder(self, device: torch.device) -> Callable[[Sample], Sample]:
        """A function from latents to images, (n, 3, resolution, resolution).

        Raises ValueError without diffusers, without the weights, or if the latents, where this
        process can read them, were encoded with other weights.
        """
        found = vae.load(self.vae, device)
        if (self.root / INDEX).is_file():
            index = Index.load(self.root)
            here, there = (found.sha256, found.scaling), (index.vae_sha256, index.scaling)
            if here != there:
                raise ValueError(
                    f"latents must be of the VAE {self.vae}, {_weights(*here)}; "
                    f"got those of {index.vae}, {_weights(*there)}, in {self.root}"
                )
        return found.decode

    def write_random(self, folder: Path, count: int) -> dict[str, Any]:
        """Writes ``count`` random latents as ``jobs.encode`` would; returns ``root``, their folder.

        They name no weights, so no autoencoder decodes them.
        """
        index = Index(
            vae=self.vae,
            vae_sha256="",
            scaling=0.18215,
            shape=(self.channels, self.size, self.size),
            resolution=self.resolution,
            classes=self.classes,
            count=count,
            shard=count,
            mirrored=self.mirror,
            dtype="float16",
            images="",
        )
        folder.mkdir(parents=True, exist_ok=True)
        index.save(folder)
        moments = torch.randn(index.arrays(0), generator=generator("stand-in"))
        write_shard(folder, index, 0, moments, torch.arange(count) % max(self.classes, 1))
        return {"root": str(folder)}


def _weights(sha256: str, scaling: float) -> str:
    return f"weights {sha256[:12]}, scaling factor {scaling}"


@cache
def _load(data: Latents, root: Path) -> "LatentSet":
    index = Index.load(root)
    shards = Shards(root, index)
    declared = {
        "shape": (data.shape, index.shape),
        "resolution": (data.resolution, index.resolution),
        "classes": (data.classes, index.classes),
    }
    # A folder is identified by its weights, which ``decoder`` compares.
    if not Path(data.vae).is_dir():
        declared["vae"] = (data.vae, index.vae)
    for name, (wanted, found) in declared.items():
        if wanted != found:
            raise ValueError(f"latents must have the {name} {wanted}; got {found} in {root}")
    if data.mirror and not index.mirrored:
        raise ValueError(f"data.mirror needs latents of mirror images; got none in {root}")
    check_labels(shards.labels, max(index.classes, 1), root)
    return LatentSet(shards, data.mirror)


class LatentSet:
    """Latents that are read from disk before the steps need them, in the order of ``ImageSet``."""

    def __init__(self, shards: Shards[Index], mirror: bool) -> None:
        """``mirror`` uses the mirror image's moments half of the time."""
        self.shards, self.mirror, self.labels = shards, mirror, shards.labels
        self._order = Order(len(self.labels))
        self._ahead = Ahead(self._views, self._read, THREADS)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.shards.index.shape)

    def batch(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """Draws of the posteriors of this step's images, (size, C, H, W).

        The noise is a function of (seed, step) and of the position in the batch.
        """
        moments = to_device(self._ahead.batch(step, size, seed, part), device)
        g = generator("posterior", seed, step, device=device)
        noise = torch.randn(size, *self.shape, generator=g, device=device)
        return self._scaled(moments, noise[part])

    def _views(self, step: int, size: int, seed: int) -> Tensor:
        """Twice the image's index, plus one for its mirror image."""
        g = generator("mirror", seed, step)
        return 2 * self._order.positions(step, size, seed) + self._coins(size, g)

    def _coins(self, n: int, g: torch.Generator) -> Tensor:
        return torch.randint(2, (n,), generator=g, device=g.device).cpu() * self.mirror

    def _read(self, views: Sequence[int]) -> Tensor:
        return self.shards.read(*np.divmod(views, 2))

    def _scaled(self, moments: Tensor, noise: Sample) -> Sample:
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self.shards.index.scaling * (mean + (log_variance / 2).exp() * noise)

    def labels_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Label:
        """The labels of ``batch`` with the same arguments."""
        return to_device(self.labels[self._order.positions(step, size, seed)[part]], device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n latents of independent, uniformly chosen images, each drawn anew; on the CPU."""
        require_positive("n", n)
        g = generator
        images = torch.randint(len(self), (n,), generator=g, device=g.device).cpu()
        moments = self._ahead.read((2 * images + self._coins(n, g)).tolist())
        return self._scaled(
            moments, torch.randn(n, *self.shape, generator=g, device=g.device).cpu()
        )

    def fingerprint(self) -> str:
        """BLAKE2 of the index, the labels and the checksums of all moments."""
        about = json.dumps(serialization.to_dict(self.shards.index)).encode()
        return hashlib.blake2b(about + self.shards.rows.tobytes(), digest_size=16).hexdigest()

    def waiting_share(self) -> float:
        """The share of the time since the last call that was spent waiting for files."""
        return self._ahead.waiting_share()
