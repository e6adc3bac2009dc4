"""Latents of images as a data set: a fresh draw of each image's posterior, every time it is met."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vamf import values
from vamf.data import vae
from vamf.data.dataset import WHOLE, Split, check_labels, require_positive, to_device
from vamf.data.files import require_folder
from vamf.data.folders import ImageFolder
from vamf.data.order import Order
from vamf.data.shards import INDEX, Index, Shards
from vamf.data.streaming import Ahead
from vamf.flow.oracle import EmpiricalVelocity
from vamf.random import generator
from vamf.typing import Label, Sample

THREADS = 4
"""Parts of a batch that are read at once: disks take several requests, and nothing is decoded."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Images as an autoencoder of Stable Diffusion sees them, as `jobs.encode` writes them.

    Each time that an image is met its latent is drawn anew from the posterior, of the image or of
    its mirror image, and scaled. Samples are decoded before they are measured or shown.
    """

    has_velocity: ClassVar[bool] = False
    """Whether the true marginal velocity has a closed form that can be afforded."""

    root: Path = Path("data/latents")
    """Folder of the training latents."""
    test: Path | None = None
    """Folder of held-out latents; without one the training latents take their place."""
    images: Path = Path("data/images")
    """Folder of the images that were encoded: what distances to a split compare with."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """The autoencoder: a repository of the Hugging Face hub, or a folder; latents of another one
    are refused."""
    channels: int = 4
    """Channels of a latent."""
    size: int = 32
    """Height and width of a latent."""
    resolution: int = 256
    """Height and width of the images."""
    classes: int = 1000
    """Classes of the labels; 0 for latents without."""
    mirror: bool = True
    """Takes each image's mirror image half of the times."""

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
    def pictures(self) -> ImageFolder:
        """The images themselves, cut as they were for encoding."""
        return ImageFolder(root=self.images, size=self.resolution)

    def velocity(self) -> EmpiricalVelocity:
        """Raises ValueError: of as many latents no closed form is offered."""
        raise ValueError(f"latents have no closed-form velocity; got {self.root}")

    def load(self, split: Split) -> "LatentSet":
        """The latents of one split, in the order of their images' names.

        Raises ValueError if they are not there, damaged, or not those that are declared.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        return _load(self, self.test if split == "test" and self.test else self.root)

    def prepare(self, compared: bool) -> None:
        """Finds the autoencoder, and the images if they are ``compared`` with.

        Raises ValueError for what is missing.
        """
        self.decoder(torch.device("cpu"))
        if compared:
            require_folder(self.images)

    def decoder(self, device: torch.device) -> Callable[[Sample], Sample]:
        """A function from latents to images, (n, 3, resolution, resolution).

        Raises ValueError without diffusers, without the weights, or if the latents, where they are
        in reach, are of other weights.
        """
        found = vae.load(self.vae, device)
        if (self.root / INDEX).is_file():
            index = Index.load(self.root)
            here, there = (found.sha256, found.scaling), (index.vae_sha256, index.scaling)
            if here != there:
                raise ValueError(
                    f"latents must be of the VAE {self.vae}, {_words(*here)}; "
                    f"got those of {index.vae}, {_words(*there)}, in {self.root}"
                )
        return found.decode


def _words(sha256: str, scaling: float) -> str:
    return f"weights {sha256[:12]}, scaling factor {scaling}"


@cache
def _load(data: Latents, root: Path) -> "LatentSet":
    shards = Shards(root)
    index = shards.index
    declared = {
        "shape": (data.shape, index.shape),
        "resolution": (data.resolution, index.resolution),
        "classes": (data.classes, index.classes),
    }
    # A folder is known by its weights, which ``decoder`` compares.
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
    """Latents that are read from disk ahead of the steps, in the order that images would have."""

    def __init__(self, shards: Shards, mirror: bool) -> None:
        """``mirror`` takes the mirror image's moments half of the times."""
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
        """Draws of the posteriors at the stream's places for this step, (size, C, H, W).

        What is drawn is a function of (seed, step) and of the place in the batch.
        """
        moments = to_device(self._ahead.batch(step, size, seed, part), device)
        g = generator("posterior", seed, step, device=device)
        noise = torch.randn(size, *self.shape, generator=g, device=device)
        return self._drawn(moments, noise[part])

    def _views(self, step: int, size: int, seed: int) -> Tensor:
        """Twice the images' numbers; one more for the mirror images."""
        g = generator("mirror", seed, step)
        return 2 * self._order.positions(step, size, seed) + self._coins(size, g)

    def _coins(self, n: int, g: torch.Generator) -> Tensor:
        return torch.randint(2, (n,), generator=g, device=g.device).cpu() * self.mirror

    def _read(self, views: Sequence[int]) -> Tensor:
        return self.shards.read(*np.divmod(views, 2))

    def _drawn(self, moments: Tensor, noise: Sample) -> Sample:
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self.shards.index.scaling * (mean + (log_variance / 2).exp() * noise)

    def labels_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Label:
        """The labels of ``batch`` with the same arguments."""
        return to_device(self.labels[self._order.positions(step, size, seed)[part]], device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n latents of independent uniform images, each with a draw of its own; on the CPU."""
        require_positive("n", n)
        g = generator
        images = torch.randint(len(self), (n,), generator=g, device=g.device).cpu()
        moments = self._ahead.read((2 * images + self._coins(n, g)).tolist())
        return self._drawn(moments, torch.randn(n, *self.shape, generator=g, device=g.device).cpu())

    def fingerprint(self) -> str:
        """BLAKE2 of the index, the labels and the checksums of all moments."""
        about = json.dumps(values.to_dict(self.shards.index)).encode()
        return hashlib.blake2b(about + self.shards.rows.tobytes(), digest_size=16).hexdigest()

    def waiting_share(self) -> float:
        """The share of the time since the last call that went into waiting for the disk."""
        return self._ahead.waiting_share()
