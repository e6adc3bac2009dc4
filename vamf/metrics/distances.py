"""Distances of generated samples to real ones, as choices of an experiment."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vamf.data.dataset import Images, Split
from vamf.data.source import DataSource
from vamf.distributed import Workers
from vamf.files import sha256
from vamf.metrics import extractors, quality, reference
from vamf.metrics.extractors import ExtractorName
from vamf.metrics.frechet import frechet_with_error
from vamf.metrics.gathering import PixelsAt, gather
from vamf.metrics.quality import Quality
from vamf.metrics.quantize import to_uint8
from vamf.metrics.reference import Reference
from vamf.metrics.wasserstein import sliced_wasserstein
from vamf.output import say
from vamf.rng import generator
from vamf.typing import Sample

BLOCKS = 20
"""Number of groups of generated samples for the jackknife."""


class Measurement(NamedTuple):
    """A value and its standard error: the sampling error of one evaluation, not of training."""

    value: float
    error: float

    def __str__(self) -> str:
        """``3.71 ± 0.38``, rounded to two digits of the error."""
        if not (math.isfinite(self.error) and self.error > 0):
            return f"{self.value:.4g}"
        digits = 1 - math.floor(math.log10(self.error))
        if not -2 <= digits <= 5:
            return f"{self.value:.3g} ± {self.error:.1g}"
        return f"{self.value:.{max(digits, 0)}f} ± {self.error:.{max(digits, 0)}f}"


Generate = Callable[[range], Sample]
"""Generates the samples of the given indices; each sample depends on its index alone."""


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500).

    Only the Inception features of 2015 make it the `fid`; with any other extractor its name is
    `fd_<extractor>`. Compare values only at the same number of samples and the same reference.
    """

    extractor: ExtractorName = "digits_cnn64_v1"
    """Network of the features: a small classifier of digits, MNIST or CIFAR-10, untrained
    convolutions, or Inception (FID)."""
    samples: int = 1000
    """Generated samples, at least 40."""
    reference: Split | Path = "train"
    """Real images to compare with: a split of the data, or an npz file of published statistics,
    which for Inception must come from TensorFlow 1's resize (ADM's do, pytorch-fid's do not)."""
    weights: Path | None = None
    """Inception's weights file, if it is not in torch-fidelity's own cache."""
    also: tuple[Quality, ...] = ()
    """More metrics of the same features: `kid`, `precision_recall`, `inception_score`."""

    def __post_init__(self) -> None:
        if self.samples < 2 * BLOCKS:
            raise ValueError(f"samples must be at least {2 * BLOCKS}; got {self.samples}")
        if self.weights is not None and self.extractor != "inception":
            raise ValueError(f"weights would be ignored: {self.extractor} brings its own")
        quality.check(self.also, self.extractor == "inception", self.samples)
        if isinstance(self.reference, Path) and self._compares_images:
            raise ValueError(
                "kid and precision_recall need the reference's images, and a file holds their "
                f"mean and covariance; got {self.reference}"
            )

    @property
    def key(self) -> str:
        """Name of the metric, with its protocol: `fd_digits_cnn64_v1_n1000_train`."""
        return f"{extractors.prefix_of(self.extractor)}_n{self.samples}_{self.against}"

    @property
    def against(self) -> str:
        """The reference in names of metrics: the split, or the file's name without its ending."""
        if isinstance(self.reference, Path):
            return re.sub(r"[^A-Za-z0-9.-]+", "-", self.reference.stem)
        return self.reference

    @property
    def _compares_images(self) -> bool:
        """Whether the reference's features are needed, not only their mean and covariance."""
        return bool({"kid", "precision_recall"} & {*self.also})

    def prepare(self, source: DataSource) -> None:
        """Finds the extractor's weights and the reference's file, and tries them on a black image.

        Prints a note about a file that does not say how its features were made. Raises ValueError
        if something is missing, or does not fit the images of ``source``.
        """
        extractor = _extractor(self.extractor, self.weights)
        cpu = torch.device("cpu")
        try:
            extractor.to(cpu)(torch.zeros(1, *source.shape, dtype=torch.uint8))
        except ValueError as error:
            raise ValueError(
                f"the extractor {self.extractor} is not for these data: {error}"
            ) from None
        if isinstance(self.reference, Path):
            reference.of_file(self.reference, extractor, source.shape, cpu)
            if caution := reference.caution(self.reference, extractor):
                say(f"note: {caution}")

    def protocol(self, source: DataSource, workers: Workers) -> dict[str, str]:
        """Everything but the generated images that the metrics depend on."""
        extractor = _extractor(self.extractor, self.weights).to(workers.device)
        if isinstance(self.reference, Path):
            against = sha256(self.reference)
        else:
            images = source.load(self.reference)
            assert isinstance(images, Images)  # points are not measured by this distance
            against = images.fingerprint()
        samples = {"samples": str(self.samples), "reference": against}
        return reference.protocol(extractor, source.shape) | samples

    def __call__(
        self, generate: Generate, source: DataSource, workers: Workers, seed: int
    ) -> dict[str, Measurement]:
        """Measures on all workers together; ``seed`` is unused: samples depend on their index."""
        return self.of_pixels(lambda indices: to_uint8(generate(indices)), source, workers)

    def of_pixels(
        self, pixels: PixelsAt, source: DataSource, workers: Workers
    ) -> dict[str, Measurement]:
        """Measures the images that ``pixels`` returns for given indices, (n, C, H, W) uint8."""
        extractor = _extractor(self.extractor, self.weights).to(workers.device)
        key = extractors.metric_key(extractor, self.samples, self.against)  # checks the name
        real = _reference(self, source, workers)  # type: ignore[arg-type]  # frozen dataclasses have a hash
        keep = bool(self.also)
        made = gather(extractor, pixels, self.samples, BLOCKS, workers, keep=keep)
        found = frechet_with_error(made.blocks, real.statistics)
        metrics = {key: (found.value, found.error)}
        metrics[f"{key}_unbiased"] = (found.unbiased, found.error)
        if made.features is not None:
            suffix = f"n{self.samples}_{self.against}"
            metrics |= quality.scores(self.also, extractor, made.features, real.features, suffix)
        return {name: Measurement(*pair) for name, pair in metrics.items()}

    def of_images(
        self, images: Images, source: DataSource, workers: Workers
    ) -> dict[str, Measurement]:
        """Measures all images of a set instead of ``samples`` generated ones.

        In a fixed random order: the error needs similar groups, and files are often sorted by
        class.
        """
        order = torch.randperm(len(images), generator=generator("order")).tolist()
        whole = replace(self, samples=len(images))
        return whole.of_pixels(lambda i: images.pixels([order[k] for k in i]), source, workers)

    def save(self, images: Images, path: Path, workers: Workers) -> None:
        """Writes mean and covariance of the images' features, to be used as a reference."""
        extractor = _extractor(self.extractor, self.weights).to(workers.device)
        found = reference.of_images(images, extractor, workers, split="train")
        found.statistics.save(path, reference.protocol(extractor, images.shape))


@lru_cache(maxsize=8)
def _reference(distance: FrechetDistance, source: DataSource, workers: Workers) -> Reference:
    extractor = _extractor(distance.extractor, distance.weights).to(workers.device)
    if isinstance(distance.reference, Path):
        return reference.of_file(distance.reference, extractor, source.shape, workers.device)
    images, keep = source.load(distance.reference), distance._compares_images
    assert isinstance(images, Images)  # points are not measured by this distance
    return reference.of_images(images, extractor, workers, split=distance.reference, keep=keep)


@lru_cache(maxsize=4)
def _extractor(name: ExtractorName, weights: Path | None) -> extractors.Extractor:
    return extractors.build(name, weights)


@dataclass(frozen=True, kw_only=True)
class SlicedWasserstein:
    """Sliced Wasserstein distances of order 1 and 2 to fresh real points.

    Averaged over repetitions with their own noise, reference points and directions, which also
    give the standard error.
    """

    samples: int = 4096
    """Number of generated and of real points, at least 2."""
    directions: int = 500
    """Number of random directions of projection."""
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
        """Name of the first-order distance, with its number of samples: `sw1_n4096`."""
        return f"sw1_n{self.samples}"

    def prepare(self, source: DataSource) -> None:
        """Does nothing: points need no preparation."""

    def __call__(
        self, generate: Generate, source: DataSource, workers: Workers, seed: int
    ) -> dict[str, Measurement]:
        """Every worker computes the same distances, as points are cheap."""
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
