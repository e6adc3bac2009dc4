"""What training and evaluation ask of data: batches in a fixed order, and independent draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from vamf.random import generator
from vamf.typing import Label, Pixels, Sample

Split = Literal["train", "test"]

Sampler = Callable[[int, torch.Generator], Sample]
"""Draws n independent samples of a distribution with the given generator."""


class Dataset(Protocol):
    """Samples of one shape, as float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, for example (2,) or (1, 8, 8)."""
        ...

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> Sample:
        """The batch of a training step, (size, *shape): a pure function of (seed, step, size)."""
        ...

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n independent draws with replacement, (n, *shape), where the data set lives."""
        ...


@dataclass(frozen=True)
class Generated:
    """A distribution given by its sampler: every batch is fresh, there is no epoch."""

    sampler: Sampler
    shape: tuple[int, ...]

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> Sample:
        """Fresh samples keyed by (seed, step), drawn on the CPU and moved to ``device``."""
        return self.draw(size, generator("data", seed, step)).to(device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n fresh samples on the CPU."""
        _require_positive("n", n)
        return self.sampler(n, generator)


class ImageSet:
    """Finitely many labelled images: (N, C, H, W) uint8 pixels, served as float32 in [-1, 1]."""

    def __init__(self, images: Pixels, labels: Label) -> None:
        """Raises ValueError unless images are uint8 (N, C, H, W) with N labels, N at least 1."""
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 1:
            found = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ValueError(f"images must be uint8 (N, C, H, W) with N at least 1; got {found}")
        if len(labels) != len(images):
            raise ValueError(
                f"labels must be as many as images; got {len(labels)} and {len(images)}"
            )
        self.images = images
        self.labels = labels
        self._permutation: tuple[tuple[int, int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device | str) -> Self:
        """The same data in the memory of ``device``, where ``batch`` and ``draw`` then index it."""
        return type(self)(self.images.to(device), self.labels.to(device))

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> Sample:
        """The images at ``positions(step, size, seed)``, moved to ``device``."""
        return to_float(self.images[self.positions(step, size, seed)]).to(device)

    def labels_of(self, step: int, size: int, seed: int, device: torch.device) -> Label:
        """The labels of ``batch`` with the same arguments, (size,)."""
        return self.labels[self.positions(step, size, seed)].to(device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n images, independent and uniform, hence with repetitions."""
        _require_positive("n", n)
        chosen = torch.randint(len(self), (n,), generator=generator, device=generator.device)
        return to_float(self.images[chosen.to(self.images.device)])

    def positions(self, step: int, size: int, seed: int) -> Tensor:
        """Which images and labels batch ``step`` holds, (size,) int64.

        All epochs, each a fresh permutation keyed by (seed, epoch), form one endless stream; the
        batch is its part [step * size, (step + 1) * size), which may lie in several epochs.
        """
        _require_positive("size", size)
        start, stop, total = step * size, (step + 1) * size, len(self)
        parts = [
            self._epoch(seed, epoch)[max(start - epoch * total, 0) : stop - epoch * total]
            for epoch in range(start // total, (stop - 1) // total + 1)
        ]
        return torch.cat(parts)

    def _epoch(self, seed: int, epoch: int) -> Tensor:
        if self._permutation is None or self._permutation[0] != (seed, epoch):
            # Drawn on the CPU, so that the order is the same on every device.
            order = torch.randperm(len(self), generator=generator("epoch", seed, epoch))
            self._permutation = ((seed, epoch), order.to(self.images.device))
        return self._permutation[1]


def to_float(images: Pixels) -> Sample:
    """Pixels 0 to 255 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
