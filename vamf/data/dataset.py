"""Data sets in memory and their interfaces: batches in a fixed order, and independent draws."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from vamf.data.shuffle import Order
from vamf.rng import generator
from vamf.typing import Label, Pixels, Sample

Split = Literal["train", "test"]

PointSampler = Callable[[int, torch.Generator], Sample]
"""Draws n independent samples of a distribution with the given generator."""

WHOLE = slice(None)


class Dataset(Protocol):
    """Samples of one shape, as float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, for example (2,) or (1, 8, 8)."""
        ...

    def batch(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """The batch of a training step, (size, *shape): a pure function of (seed, step, size).

        ``part`` selects the samples of the batch that one worker needs.
        """
        ...

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n independent draws with replacement, (n, *shape), on the data set's device."""
        ...


@runtime_checkable
class Labelled(Dataset, Protocol):
    """Finitely many samples with labels."""

    def __len__(self) -> int: ...

    def labels_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Label:
        """The labels of ``batch`` with the same arguments."""
        ...

    def fingerprint(self) -> str:
        """A hash that differs for another set, and for the same set in another order."""
        ...


@runtime_checkable
class Images(Labelled, Protocol):
    """Finitely many labelled images, with which a distance compares generated ones."""

    def pixels(self, indices: Sequence[int]) -> Pixels:
        """The images at the given indices of the data set, (n, C, H, W) uint8."""
        ...


@runtime_checkable
class Coupled(Dataset, Protocol):
    """Samples that have a noise each, in the place of one that is drawn independently."""

    def noise_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """The noise of the samples of ``batch`` with the same arguments."""
        ...

    def draw_pairs(self, n: int, generator: torch.Generator) -> tuple[Sample, Sample]:
        """n independent draws of a sample and its noise, with replacement, each (n, *shape)."""
        ...


def draw_with_noise(
    dataset: Dataset, n: int, generator: torch.Generator
) -> tuple[Sample, Sample | None]:
    """n independent draws, and the noise of each; None if that is drawn independently."""
    if isinstance(dataset, Coupled):
        return dataset.draw_pairs(n, generator)
    return dataset.draw(n, generator), None


@dataclass(frozen=True)
class Generated:
    """A distribution given by its sampler: every batch is drawn anew, so there are no epochs."""

    sampler: PointSampler
    shape: tuple[int, ...]

    def batch(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """Fresh samples keyed by (seed, step), drawn on the CPU and moved to ``device``."""
        return to_device(self.draw(size, generator("data", seed, step))[part], device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n fresh samples on the CPU."""
        require_positive("n", n)
        return self.sampler(n, generator)


class ImageSet:
    """Finitely many labelled images: (N, C, H, W) uint8 pixels, returned as float32 in [-1, 1]."""

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
        self._order = Order(len(images), images.device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device | str) -> Self:
        """The same data in the memory of ``device``, on which ``batch`` and ``draw`` then index."""
        return type(self)(self.images.to(device), self.labels.to(device))

    def pixels(self, indices: Sequence[int]) -> Pixels:
        """The images at the given indices, unchanged."""
        return self.images[list(indices)]

    def batch(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """The images at ``positions(step, size, seed)``, moved to ``device``."""
        return to_device(to_float(self.images[self.positions(step, size, seed)[part]]), device)

    def labels_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Label:
        """The labels of ``batch`` with the same arguments, (size,)."""
        return to_device(self.labels[self.positions(step, size, seed)[part]], device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n images, independent and uniform, hence with repetitions."""
        require_positive("n", n)
        chosen = torch.randint(len(self), (n,), generator=generator, device=generator.device)
        return to_float(self.images[chosen.to(self.images.device)])

    def positions(self, step: int, size: int, seed: int) -> Tensor:
        """Which images and labels batch ``step`` holds, (size,) int64: see ``Order``."""
        return self._order.positions(step, size, seed)

    def fingerprint(self) -> str:
        """BLAKE2 of all pixels; labels are not part of it."""
        pixels = self.images.cpu().contiguous().numpy()
        return hashlib.blake2b(pixels.data, digest_size=16).hexdigest()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``; copies to a GPU use pinned memory, and the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_float(images: Pixels) -> Sample:
    """Pixels 0 to 255 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def check_labels(labels: Label, classes: int, where: object) -> None:
    """Raises ValueError unless all labels lie in 0, ..., classes - 1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0, ..., {classes - 1}; got {low} to {high} in {where}"
        )


def require_positive(name: str, value: int) -> None:
    """Raises ValueError for a value below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
