"""Checks the FID against published values; needs CIFAR-10 and the Inception weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vamf.data.dataset import ImageSet
from vamf.data.torchvision_sets import CIFAR10
from vamf.distributed import Workers
from vamf.metrics.extractors import Extractor, build
from vamf.metrics.frechet import frechet_distance
from vamf.metrics.reference import of_images


class KnownValue(NamedTuple):
    """A measured value and the published one."""

    what: str
    measured: float
    expected: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the values differ by at most the tolerance; false for NaN."""
        return abs(self.measured - self.expected) <= self.tolerance

    def __str__(self) -> str:
        verdict = "pass" if self.holds else "FAIL"
        wanted = f"{self.expected:.4f} ± {self.tolerance:g}"
        return f"{verdict}  {self.what}: {self.measured:.4f}, expected {wanted}"


def chosen(data: ImageSet, n: int) -> ImageSet:
    """The n images that torch-fidelity's own test uses: ``RandomState(2020).choice``."""
    index = torch.from_numpy(np.random.RandomState(2020).choice(len(data), n, replace=False))
    return ImageSet(data.images[index], data.labels[index])


def known_values(data: CIFAR10, weights: Path | None, device: torch.device) -> Iterator[KnownValue]:
    """FID of 5,000 training against 5,000 test images, then of all against all.

    The first is the value in torch-fidelity's test suite, the second the value that papers report.
    Raises ValueError without the data or the weights.
    """
    extractor = build("inception", weights).to(device)
    train, test = data.load("train"), data.load("test")
    pair = chosen(train, 5000), chosen(test, 5000)
    small = _distance(*pair, extractor, device)
    yield KnownValue("FID of 5,000 CIFAR-10 train against 5,000 test images", small, 10.3233, 1e-3)
    whole = _distance(train, test, extractor, device)
    yield KnownValue("FID of CIFAR-10's train against its test images", whole, 3.15, 0.05)


def _distance(a: ImageSet, b: ImageSet, extractor: Extractor, device: torch.device) -> float:
    """The distance of training images ``a`` and test images ``b``; their statistics are cached."""
    workers = Workers(device=device)
    train = of_images(a, extractor, workers, split="train").statistics
    return frechet_distance(train, of_images(b, extractor, workers, split="test").statistics)
