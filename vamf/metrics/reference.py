"""Statistics of real images: computed once by all workers, then cached on disk."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vamf import cache
from vamf.data.dataset import Images
from vamf.distributed import Workers
from vamf.files import write_whole
from vamf.metrics.extractors import INCEPTION_ID, Extractor
from vamf.metrics.gathering import gather
from vamf.metrics.statistics import FeatureStatistics, maker
from vamf.output import say
from vamf.typing import Features

SMALL = 64
"""Images up to this size are enlarged so much that the kind of resize changes FIDs by percents."""

VERSION = "1"
"""Version of what is stored and how it is computed; files of another version are not read."""


class Reference(NamedTuple):
    """Statistics of the real images with which generated ones are compared."""

    statistics: FeatureStatistics
    features: Features | None
    """All features in the images' order, float32 on the CPU; None unless requested."""


def protocol(extractor: Extractor, shape: tuple[int, ...]) -> dict[str, str]:
    """What distances of images of ``shape`` (C, H, W) must share to be comparable."""
    return {
        "extractor": extractor.id,
        "weights": extractor.sha256,
        "quantisation": "uint8, round half up",
        "precision": "float32",
        "resolution": "x".join(map(str, shape)),
    }


def of_images(
    images: Images, extractor: Extractor, workers: Workers, *, split: str, keep: bool = False
) -> Reference:
    """Mean and covariance of all images' features, and the features themselves if ``keep``.

    Cached by images, weights and resolution. Collective: rank 0 reads the cache and shares what it
    finds; otherwise all workers compute it together.
    """
    key = protocol(extractor, images.shape) | {
        "images": images.fingerprint(),
        "count": str(len(images)),
        "split": split,
        "version": VERSION,
    }
    path = cache.place(key, ".npz")
    with cache.alone(path) if workers.rank == 0 else nullcontext(False) as writable:
        found = _read(path, key, keep) if workers.rank == 0 else None
        if workers.sum(torch.tensor([found is not None], device=workers.device).long()).item():
            return _share(found, len(images), extractor.dim, workers, keep)
        made = _compute(images, extractor, workers, keep)
        if writable:
            _write(path, key, made)
    return made


def _compute(images: Images, extractor: Extractor, workers: Workers, keep: bool) -> Reference:
    found = gather(extractor, images.pixels, len(images), 1, workers, keep=keep)
    return Reference(found.blocks[0].statistics(), found.features)


def _read(path: Path, key: Mapping[str, str], keep: bool) -> Reference | None:
    """The cached reference, or None if it is missing, damaged, or lacks the features."""
    try:
        statistics = FeatureStatistics.load(path, key)
        features = torch.from_numpy(np.load(path.with_suffix(".npy"))) if keep else None
    except (OSError, ValueError, EOFError):
        return None
    if features is not None and not features.isfinite().all():
        return None
    return Reference(statistics, features)


def _write(path: Path, key: Mapping[str, str], made: Reference) -> None:
    features = made.features
    try:
        if features is not None:
            array = features.numpy()
            write_whole(path.with_suffix(".npy"), lambda file: np.save(file, array))
        made.statistics.save(path, key)
    except OSError as error:
        say(f"reference statistics were not kept: {error}")


def _share(
    found: Reference | None, count: int, dim: int, workers: Workers, keep: bool
) -> Reference:
    """Rank 0's reference on every worker: a sum to which the others add zeros."""

    def everywhere(*shape: int, dtype: torch.dtype, of: Callable[[Reference], Tensor]) -> Tensor:
        mine = torch.zeros(shape, dtype=dtype, device=workers.device)
        return workers.sum(mine if found is None else mine + of(found).to(workers.device))

    mean = everywhere(dim, dtype=torch.float64, of=lambda r: r.statistics.mean)
    covariance = everywhere(dim, dim, dtype=torch.float64, of=lambda r: r.statistics.covariance)
    statistics = FeatureStatistics(mean=mean, covariance=covariance, count=count)
    if not keep:
        return Reference(statistics, None)
    features = everywhere(count, dim, dtype=torch.float32, of=_features)
    return Reference(statistics, features.cpu())


def _features(reference: Reference) -> Tensor:
    assert reference.features is not None
    return reference.features


def of_file(
    path: Path, extractor: Extractor, shape: tuple[int, ...], device: torch.device
) -> Reference:
    """Published statistics, or those that ``of_images`` wrote.

    Raises ValueError for those of another extractor, other weights or another resolution, and for
    those of small images that another resize than ours enlarged for Inception.
    """
    statistics = FeatureStatistics.load(path, protocol(extractor, shape))
    if len(statistics.mean) != extractor.dim:
        raise ValueError(
            f"{path} must hold statistics of {extractor.dim} features, as {extractor.id} has; "
            f"got {len(statistics.mean)}"
        )
    _refuse_other_resize(path, extractor, shape)
    mean, covariance = statistics.mean.to(device), statistics.covariance.to(device)
    moved = FeatureStatistics(mean=mean, covariance=covariance, count=statistics.count)
    return Reference(moved, None)


def _refuse_other_resize(path: Path, extractor: Extractor, shape: tuple[int, ...]) -> None:
    if maker(path) == "MeanFlow" and extractor.id == INCEPTION_ID and max(shape[1:]) <= SMALL:
        raise ValueError(
            f"statistics of images of up to {SMALL} pixels must come from TensorFlow 1's resize to "
            f"299 pixels, as {extractor.id}'s do; got {path}, whose ref_mu and ref_sigma are what "
            "MeanFlow's JAX code writes: it resizes with half-pixel centres, which moves FIDs by "
            "percents"
        )


def caution(path: Path, extractor: Extractor) -> str | None:
    """A line of warning for a file that does not say how its features were made, else None."""
    who = maker(path)
    if who == "vamf" or (who == "ADM" and extractor.id == INCEPTION_ID):
        return None
    if extractor.id != INCEPTION_ID:
        return f"{path} does not say which features it is of; they must be those of {extractor.id}"
    if who == "MeanFlow":
        return (
            f"{path} seems to be of MeanFlow's JAX code, which resizes with half-pixel centres, "
            f"not as {extractor.id} does: the value is shifted, and no published FID"
        )
    return (
        f"{path} does not say which resize its features come from; they must come from TensorFlow "
        f"1's, as {extractor.id}'s do: ADM's, EDM's and torch-fidelity's do; pytorch-fid's and "
        "MeanFlow's have half-pixel centres, which moves FIDs of small images by percents"
    )
