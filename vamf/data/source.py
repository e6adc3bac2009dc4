"""The interfaces of the data sets that an experiment can name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from vamf.data.dataset import Dataset, Split
from vamf.typing import Sample, Velocity


@runtime_checkable
class DataSource(Protocol):
    """A choice of a data set: a frozen dataclass whose fields say which data it is.

    Creating one reads nothing. Its properties are known before the data are loaded. A class that
    inherits from this one has data without an exact velocity, unless it says otherwise.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (d,) for points, (C, H, W) for images and latents."""
        ...

    @property
    def classes(self) -> int:
        """The number of classes; labels lie in 0, ..., classes - 1. 0 for data without labels."""
        ...

    @property
    def has_exact_velocity(self) -> bool:
        """Whether ``velocity`` returns the marginal velocity, or raises ValueError."""
        return False

    def velocity(self) -> Velocity:
        """The exact marginal velocity v(z, t) = E[e - x | z] of the data, on any device.

        Raises ValueError if ``has_exact_velocity`` is false, or if it needs data that are missing.
        """
        raise ValueError(f"the velocity of {self} is not known in closed form")

    def load(self, split: Split) -> Dataset:
        """The data of one split, of this ``shape``; labelled if ``classes`` is not 0.

        Raises ValueError for another split, and for data that are missing or damaged.
        """
        ...


@runtime_checkable
class PointSource(DataSource, Protocol):
    """Points in d dimensions, drawn from a distribution without end."""

    def batches(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """``count`` independent batches, (count, size, d), on the generator's device."""
        ...


@runtime_checkable
class LatentSource(DataSource, Protocol):
    """Images that an autoencoder has encoded; samples are decoded before they are used.

    Its ``shape`` is that of a latent. A class that lacks one of these members is taken for images.
    """

    @property
    def reference_images(self) -> DataSource:
        """The images that were encoded, with which decoded samples are compared."""
        ...

    @property
    def decoder_name(self) -> str:
        """The decoder's name, in reports: figures of different decoders cannot be compared."""
        ...

    @property
    def decoder_packages(self) -> tuple[str, ...]:
        """The packages, by pip's names, that the decoder needs besides vamf's dependencies."""
        ...

    def decoder(self, device: torch.device) -> Callable[[Sample], Sample]:
        """A function from latents (n, *shape) to images (n, *reference_images.shape) on a device.

        Raises ValueError if the decoder is missing, or has not the weights of the encoder.
        """
        ...

    def decoder_fingerprint(self, device: torch.device) -> str:
        """A checksum of the decoder's weights. Raises ValueError if it is missing."""
        ...

    def prepare(self, compared: bool) -> None:
        """Finds the decoder, and the images if samples are ``compared`` with them.

        Raises ValueError if one is missing.
        """
        ...

    def located(self) -> Self:
        """The same with the decoder's place as an absolute path, if it is a path.

        Fields of type ``Path`` are made absolute already.
        """
        ...

    def write_random(self, folder: Path, count: int) -> dict[str, Any]:
        """Writes ``count`` random latents, for benchmarks where the data are missing.

        Returns the fields, by name, that select them in a copy of this choice.
        """
        ...


def is_points(data: DataSource) -> bool:
    """Whether samples are points, with one axis; images and latents have three."""
    return len(data.shape) == 1
