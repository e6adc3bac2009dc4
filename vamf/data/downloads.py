"""MNIST and CIFAR-10 as torchvision keeps them: one local folder, and a download if asked for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch

from vamf.data.dataset import ImageSet, Split, check_labels
from vamf.flow.oracle import EmpiricalVelocity

ROOT = Path("data")


@dataclass(frozen=True, kw_only=True)
class Published(ABC):
    """A published data set of ten classes, in torchvision's layout below ``root``."""

    root: Path = ROOT
    """Folder that holds, or is to hold, the data."""
    download: bool = False
    """Fetches the data (CIFAR-10 170 MB, MNIST 11 MB) if they are not there."""

    has_velocity: ClassVar[bool] = True
    """Whether the true marginal velocity has a closed form."""
    classes: ClassVar[int] = 10
    """How many classes the labels name."""
    shape: ClassVar[tuple[int, ...]]
    """The shape of an image."""

    def velocity(self) -> EmpiricalVelocity:
        """The marginal velocity of the training images themselves: all enter each value."""
        return EmpiricalVelocity(self.load("train").images)

    def load(self, split: Split) -> ImageSet:
        """The images of one split, (N, *shape), in the published order.

        Raises ValueError if they are neither there nor to be downloaded, or damaged.
        """
        return _load(self, split)

    @abstractmethod
    def read(self, split: Split) -> ImageSet:
        """``load``, from disk."""


@cache
def _load(data: Published, split: Split) -> ImageSet:
    return data.read(split)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Published):
    """CIFAR-10 (Krizhevsky, 2009): 60,000 colour 32x32 images of ten classes, 10,000 of them test.

    In torchvision's layout: ``ROOT/cifar-10-batches-py``, the original pickles.
    """

    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)
    """The shape of an image."""

    def read(self, split: Split) -> ImageSet:
        from torchvision.datasets import CIFAR10 as Theirs  # four CPU-seconds

        found = _read("CIFAR-10", "cifar-10-batches-py", Theirs, self.root, self.download, split)
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return _labelled(images, torch.tensor(found.targets), self.root)


@dataclass(frozen=True, kw_only=True)
class MNIST(Published):
    """MNIST (LeCun et al., 1998): 70,000 grey 28x28 digits, 10,000 of them test.

    In torchvision's layout: ``ROOT/MNIST/raw``, the original IDX files.
    """

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    """The shape of an image."""

    def read(self, split: Split) -> ImageSet:
        from torchvision.datasets import MNIST as Theirs  # four CPU-seconds

        found = _read("MNIST", "MNIST/raw", Theirs, self.root, self.download, split)
        return _labelled(found.data[:, None], found.targets, self.root)


def _read(name: str, folder: str, theirs, root: Path, download: bool, split: Split):  # type: ignore[no-untyped-def]
    """torchvision's own data set, or its complaint as one line."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
    try:
        return theirs(root=root, train=split == "train", download=download)
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        hint = "" if download else "; data.download=true fetches it"
        raise ValueError(
            f"{name} must lie in {root / folder}, as torchvision keeps it; got: {reason}{hint}"
        ) from None


def _labelled(images: torch.Tensor, labels: torch.Tensor, root: Path) -> ImageSet:
    check_labels(labels, 10, root)
    return ImageSet(images, labels.long())
