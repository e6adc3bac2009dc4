"""Distances of generated samples to real ones, as choices of an experiment."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vamf.data.dataset import Dataset, Split
from vamf.distributed import Workers
from vamf.metrics import extractors
from vamf.metrics.extractors import ExtractorName
from vamf.metrics.frechet import frechet_with_error
from vamf.metrics.moments import FeatureMoments, FeatureStatistics
from vamf.metrics.quantize import to_uint8
from vamf.metrics.wasserstein import sliced_wasserstein
from vamf.random import generator
from vamf.typing import Sample

BLOCKS = 20
"""Groups of generated samples, for the jackknife."""


class Measurement(NamedTuple):
    """A figure and its standard error: the sampling error of one evaluation, not of training."""

    value: float
    error: float

    def __str__(self) -> str:
        """``3.71 ± 0.38``, to the digits that the error allows."""
        if not (math.isfinite(self.error) and self.error > 0):
            return f"{self.value:.4g}"
        digits = 1 - math.floor(math.log10(self.error))
        if not -2 <= digits <= 5:
            return f"{self.value:.3g} ± {self.error:.1g}"
        return f"{self.value:.{max(digits, 0)}f} ± {self.error:.{max(digits, 0)}f}"


class Source(Hashable, Protocol):
    """A data set that can be loaded: a frozen choice."""

    def load(self, split: Split) -> Dataset: ...


Generate = Callable[[range], Sample]
"""Generates the samples of the given indices; a sample depends on its index alone."""


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500).

    Only the Inception features of 2015 make it the `fid`; with any other extractor its name is
    `fd_<extractor>`. Figures compare only at the same number of samples and the same reference.
    """

    extractor: ExtractorName = "digits_cnn64_v1"
    """Which features: a small digits classifier, or Inception for the FID."""
    samples: int = 1000
    """Generated samples, a multiple of 20."""
    reference: Split = "train"
    """Real images to compare with."""
    weights: Path | None = None
    """Inception's weights file, if it is not in torch-fidelity's own cache."""

    def __post_init__(self) -> None:
        if self.samples < 2 * BLOCKS or self.samples % BLOCKS:
            raise ValueError(
                f"samples must be a multiple of {BLOCKS}, at least {2 * BLOCKS}; got {self.samples}"
            )
        if self.weights is not None and self.extractor != "inception":
            raise ValueError(f"weights would be ignored: {self.extractor} brings its own")

    @property
    def key(self) -> str:
        """Name of the figure, with its protocol: `fd_digits_cnn64_v1_n1000_train`."""
        extractor = _extractor(self.extractor, self.weights)
        return extractors.metric_key(extractor, self.samples, self.reference)

    def prepare(self) -> None:
        """Finds the extractor's weights; ValueError says what to provide."""
        _extractor(self.extractor, self.weights)

    def __call__(
        self, generate: Generate, source: Source, workers: Workers, seed: int
    ) -> dict[str, Measurement]:
        """Measures on all workers together; ``seed`` is not needed, the samples carry theirs."""
        extractor = _extractor(self.extractor, self.weights).to(workers.device)
        reference = _reference(self, source, workers.device)
        size = self.samples // BLOCKS
        blocks = [FeatureMoments(extractor.dim, workers.device) for _ in range(BLOCKS)]
        for index in workers.mine(BLOCKS):
            images = generate(range(index * size, (index + 1) * size))
            blocks[index].update(extractor(to_uint8(images)))
        if workers.world > 1:
            for block in blocks:
                block.all_reduce()
        return {self.key: Measurement(*frechet_with_error(blocks, reference))}


@lru_cache(maxsize=4)
def _extractor(name: ExtractorName, weights: Path | None) -> extractors.Extractor:
    return extractors.build(name, weights)


@lru_cache(maxsize=8)
def _reference(
    distance: FrechetDistance, source: Source, device: torch.device
) -> FeatureStatistics:
    extractor = _extractor(distance.extractor, distance.weights).to(device)
    images = source.load(distance.reference).images  # type: ignore[attr-defined]
    moments = FeatureMoments(extractor.dim, device)
    for chunk in images.to(device).split(500):
        moments.update(extractor(chunk))
    return moments.statistics()


@dataclass(frozen=True, kw_only=True)
class SlicedWasserstein:
    """Sliced Wasserstein distances of order 1 and 2 to fresh real points.

    Averaged over repetitions with their own noise, reference points and directions, which also
    give the standard error.
    """

    samples: int = 4096
    """Generated points, and as many real ones, at least 2."""
    directions: int = 500
    """Random directions to project on."""
    repetitions: int = 4
    """Independent repetitions, at least 2."""

    def __post_init__(self) -> None:
        if self.samples < 2 or self.directions < 1 or self.repetitions < 2:
            raise ValueError(
                "sliced Wasserstein needs at least 2 samples, 1 direction and 2 repetitions; "
                f"got {self.samples}, {self.directions} and {self.repetitions}"
            )

    @property
    def key(self) -> str:
        """Name of the first-order figure, with its number of samples: `sw1_n4096`."""
        return f"sw1_n{self.samples}"

    def prepare(self) -> None:
        """Nothing is needed beforehand."""

    def __call__(
        self, generate: Generate, source: Source, workers: Workers, seed: int
    ) -> dict[str, Measurement]:
        """Measures on every worker alike: points are cheap."""
        rows = []
        for index in range(self.repetitions):
            fake = generate(range(index * self.samples, (index + 1) * self.samples)).cpu()
            g = generator(seed, "sliced_wasserstein", index)
            real = source.load("test").draw(self.samples, g)
            rows.append(sliced_wasserstein(fake, real, directions=self.directions, generator=g))
        return {
            f"sw{order}_n{self.samples}": mean_with_error(torch.tensor(values))
            for order, values in enumerate(zip(*rows, strict=True), start=1)
        }


def mean_with_error(values: Tensor) -> Measurement:
    """The mean of independent values, (n,) with n >= 2, and its standard error."""
    spread = values.double().std() / len(values) ** 0.5
    return Measurement(values.double().mean().item(), spread.item())
