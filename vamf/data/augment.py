"""Random flips, scalings and shifts that condition the network (arXiv 2206.00364, appendix F.2).

Because their parameters are inputs of the network, it learns to generate unmodified images.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from vamf.data.resample import Affine, resample, rotation, scaling, translation
from vamf.typing import Sample, expand_like

Conditioning = Float[Tensor, "batch augmentations"]
"""Inputs of the network that describe each image's transformation; zeros for none."""

Strengths = Float[Tensor, "batch draws"]
"""Random strengths of all transformations, a row for each image."""

SPREAD = 0.2
"""Standard deviation of the binary logarithm of both scalings."""
SHIFT = 0.125
"""Standard deviation of a shift, as a share of the image."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """EDM's augmentation: the part in Mean Flows' CIFAR-10 recipe, or all of it.

    Half of all images are mirrored; scaling, stretching along a random axis and shifting happen
    independently, each with probability p.
    """

    p: float = 0.12
    """Probability of each transformation, in [0, 1]."""
    yflip: bool = False
    """Turns half of the images upside down, with probability p."""
    rotate: bool = False
    """Rotates by any angle, with probability p."""
    mirror: bool = False
    """Mirrors half of all images first, without telling the network, as data loaders do."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"augment.p must lie in [0, 1]; got {self.p}")

    @property
    def dim(self) -> int:
        """The length of the conditioning: 6, or EDM's 9 with ``yflip`` and ``rotate``."""
        return 6 + self.yflip + 2 * self.rotate

    def draw(self, n: int, generator: Generator) -> Strengths:
        """Strengths for n images, (n, 9); 0 for transformations that are not applied."""

        def rand() -> Tensor:
            return torch.rand(n, generator=generator, device=generator.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, n, generator=generator, device=generator.device)

        def coin() -> Tensor:
            return torch.randint(2, (n,), generator=generator, device=generator.device).float()

        def sometimes(strength: Tensor, p: float = self.p) -> Tensor:
            return torch.where(rand() < p, strength, torch.zeros_like(strength))

        never = torch.zeros(n, device=generator.device)
        xflip = sometimes(coin(), 1.0)
        yflip = sometimes(coin()) if self.yflip else never
        scale = sometimes(normal())
        angle = sometimes(math.pi * (2 * rand() - 1)) if self.rotate else never
        stretch, axis = normal(), math.pi * (2 * rand() - 1)
        stretch, axis = sometimes(stretch), sometimes(axis, 0.5)
        shift = sometimes(normal(2))
        mirror = coin() if self.mirror else never
        return torch.stack([mirror, xflip, yflip, scale, angle, stretch, axis, *shift], 1)

    def conditioning(self, draws: Strengths) -> Conditioning:
        """The network's inputs for these strengths, (n, dim)."""
        _, xflip, yflip, scale, angle, stretch, axis, x, y = draws.unbind(1)
        columns = [xflip, *([yflip] if self.yflip else []), scale]
        columns += [angle.cos() - 1, angle.sin()] if self.rotate else []
        return torch.stack([*columns, stretch * axis.cos(), stretch * axis.sin(), x, y], 1)

    def __call__(self, images: Sample, draws: Strengths) -> Sample:
        """The images, transformed; a row of zeros changes nothing but rounding."""
        mirror, xflip, yflip, *_ = draws.unbind(1)
        flipped = expand_like(mirror != xflip, images)  # mirrored twice is not at all
        images = torch.where(flipped, images.flip(3), images)
        images = torch.where(expand_like(yflip == 1, images), images.flip(2), images)
        return resample(images, inverse(draws, images.shape[3], images.shape[2]))


def inverse(draws: Strengths, width: int, height: int) -> Affine:
    """Maps a pixel of the result to its origin in the image."""
    _, _, _, scale, angle, stretch, axis, x, y = draws.unbind(1)
    s, a = (SPREAD * scale).exp2(), (SPREAD * stretch).exp2()
    stretching = rotation(-axis) @ scaling(1 / a, a) @ rotation(axis)
    moved = translation(-SHIFT * width * x, -SHIFT * height * y)
    return scaling(1 / s, 1 / s) @ rotation(angle) @ stretching @ moved
