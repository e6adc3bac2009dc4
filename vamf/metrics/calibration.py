"""Figures that are known beforehand: whoever has CIFAR-10 and the weights can check the FID."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vamf.data.dataset import ImageSet
from vamf.data.downloads import CIFAR10
from vamf.distributed import Workers
from vamf.metrics.extractors import Extractor, build
from vamf.metrics.frechet import frechet_distance
from vamf.metrics.reference import of_images


class Anchor(NamedTuple):
    """A figure as it was measured and as it has to be."""

    what: str
    measured: float
    expected: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the figure is as near as it has to be; NaN is not."""
        return abs(self.measured - self.expected) <= self.tolerance

    def __str__(self) -> str:
        verdict = "pass" if self.holds else "FAIL"
        wanted = f"{self.expected:.4f} ± {self.tolerance:g}"
        return f"{verdict}  {self.what}: {self.measured:.4f}, expected {wanted}"


def chosen(data: ImageSet, n: int) -> ImageSet:
    """The images that torch-fidelity's own test takes: ``RandomState(2020).choice``."""
    places = np.random.RandomState(2020).choice(len(data), n, replace=False)
    index = torch.from_numpy(places)
    return ImageSet(data.images[index], data.labels[index])


def anchors(data: CIFAR10, weights: Path | None, device: torch.device) -> Iterator[Anchor]:
    """FID of 5,000 training against 5,000 test images, and of all against all, one by one.

    The first is the value in torch-fidelity's test suite, the second what papers agree on. Raises
    ValueError without the data or the weights.
    """
    extractor = build("inception", weights).to(device)
    train, test = data.load("train"), data.load("test")
    pair = chosen(train, 5000), chosen(test, 5000)
    small = _distance(*pair, extractor, device)
    yield Anchor("FID of 5,000 CIFAR-10 train against 5,000 test images", small, 10.3233, 1e-3)
    whole = _distance(train, test, extractor, device)
    yield Anchor("FID of CIFAR-10's train against its test images", whole, 3.15, 0.05)


def _distance(a: ImageSet, b: ImageSet, extractor: Extractor, device: torch.device) -> float:
    """Of training images ``a`` and test images ``b``; what is kept serves later runs too."""
    workers = Workers(device=device)
    train = of_images(a, extractor, workers, split="train").statistics
    return frechet_distance(train, of_images(b, extractor, workers, split="test").statistics)
