"""MNIST and CIFAR-10 in torchvision's folder layout, downloaded on request."""

import hashlib
import math
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import torch

from vamf.data.dataset import ImageSet, Split, check_labels
from vamf.data.layout import Layout, fault
from vamf.errors import one_line
from vamf.files import shown
from vamf.flow.oracle import EmpiricalVelocity

ROOT = Path("data")


@dataclass(frozen=True, kw_only=True)
class Published(ABC):
    """A published data set of ten classes, in torchvision's layout below ``root``."""

    root: Path = ROOT
    """Folder of the data, to which a download writes."""
    download: bool = False
    """Downloads the data (CIFAR-10 170 MB, MNIST 11 MB) if they are missing."""

    has_exact_velocity: ClassVar[bool] = True
    """Whether the marginal velocity has a closed form."""
    classes: ClassVar[int] = 10
    """The number of classes."""
    shape: ClassVar[tuple[int, ...]]
    """The shape of an image."""

    def velocity(self) -> EmpiricalVelocity:
        """The marginal velocity of the training images themselves; each value uses all of them."""
        return EmpiricalVelocity(self.load("train").images)

    def load(self, split: Split) -> ImageSet:
        """The images of one split, (N, *shape), in the published order.

        Raises ValueError if they are missing or damaged and not downloaded; it names the file, what
        is wrong with it, and a remedy.
        """
        return _load(self, split)

    @abstractmethod
    def read(self, split: Split) -> ImageSet:
        """Reads the images of one split from disk; ``load`` caches them."""


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

        sums = dict([*Theirs.train_list, *Theirs.test_list])
        batches = {name: partial(_batch_problem, md5=md5) for name, md5 in sums.items()}
        meta = {Theirs.meta["filename"]: partial(_checksum_problem, md5=Theirs.meta["md5"])}
        layout = Layout(
            folder=Theirs.base_folder, files=batches | meta, archive=Theirs.filename, verified=True
        )
        found = _read("CIFAR-10", layout, Theirs, self, split)
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return _labelled(images, torch.tensor(found.targets), self)


@dataclass(frozen=True, kw_only=True)
class MNIST(Published):
    """MNIST (LeCun et al., 1998): 70,000 grey 28x28 digits, 10,000 of them test.

    In torchvision's layout: ``ROOT/MNIST/raw``, the original IDX files.
    """

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    """The shape of an image."""

    def read(self, split: Split) -> ImageSet:
        from torchvision.datasets import MNIST as Theirs  # four CPU-seconds

        names = [Path(address).stem for address, _ in Theirs.resources]  # without .gz
        layout = Layout(folder="MNIST/raw", files=dict.fromkeys(names, _idx_problem))
        found = _read("MNIST", layout, Theirs, self, split)
        return _labelled(found.data[:, None], found.targets, self)


def _read(name: str, layout: Layout, theirs, data: Published, split: Split):  # type: ignore[no-untyped-def]
    """torchvision's own data set; ValueError says in one line what is wrong."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
    try:
        return theirs(root=data.root, train=split == "train", download=data.download)
    except Exception as error:  # of damaged files there are many kinds, some without a text
        where = shown(data.root / layout.folder)
        raise ValueError(
            f"{name} must lie in {where}, as torchvision keeps it; got: "
            f"{_reason(layout, data, error)}"
        ) from None


def _reason(layout: Layout, data: Published, error: Exception) -> str:
    found = fault(layout, data.root)
    if found is None:
        return one_line(error)
    if data.download and (found.missing or layout.verified):  # it has been tried
        return f"{found.text}; it could not be fetched: {one_line(error)}"
    return str(found)


def _idx_problem(path: Path) -> str:
    """What is wrong with an IDX file of images (n, 28, 28) or labels (n,); empty if nothing."""
    sides = (28, 28) if "images" in path.name else ()
    with path.open("rb") as file:
        magic, count, *found = struct.unpack(">4I", file.read(16).ljust(16, b"\0"))
    if magic != 0x801 + len(sides):
        return f"it does not begin as an IDX file of {'images' if sides else 'labels'} does"
    if sides and tuple(found) != sides:
        return f"its images must be 28x28; got {found[0]}x{found[1]}"
    promised = 4 * (2 + len(sides)) + count * math.prod(sides)
    if (size := path.stat().st_size) != promised:
        return f"it must have {promised} bytes by its header; got {size}"
    return ""


def _batch_problem(path: Path, md5: str) -> str:
    """What is wrong with a pickle of 10,000 images; empty if nothing."""
    size, least = path.stat().st_size, 10_000 * 3 * 32 * 32
    if size < least:
        return f"it is cut short: 10,000 images take more than {least} bytes; got {size}"
    return _checksum_problem(path, md5)


def _checksum_problem(path: Path, md5: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    return "" if found == md5 else f"it must have the published MD5 {md5}; got {found}"


def _labelled(images: torch.Tensor, labels: torch.Tensor, data: Published) -> ImageSet:
    found = tuple(images.shape[1:])
    if found != data.shape or len(images) != len(labels):
        raise ValueError(
            f"images in {shown(data.root)} must be {data.shape}, and labels as many; "
            f"got {len(images)} of {found}, and {len(labels)} labels"
        )
    check_labels(labels, 10, data.root)
    return ImageSet(images, labels.long())
