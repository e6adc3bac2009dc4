"""KID, precision and recall, and the Inception score, computed by torch-fidelity from our features.

The name of a metric says what its value depends on.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch

from vamf.compat import torch_fidelity
from vamf.metrics.extractors import INCEPTION_ID, Extractor, InceptionExtractor
from vamf.typing import Estimates, Features

Quality = Literal["kid", "precision_recall", "inception_score"]

KID_SUBSET = 1000
"""Generated and real images in each of KID's 100 subsets (arXiv 1801.01401)."""


def check(also: Sequence[Quality], inception: bool, samples: int) -> None:
    """Raises ValueError for metrics that need other features, or more samples."""
    if "inception_score" in also and not inception:
        raise ValueError("inception_score needs the extractor inception; got another one")
    if "kid" in also and samples < KID_SUBSET:
        raise ValueError(f"kid needs at least {KID_SUBSET} samples; got {samples}")


def scores(
    also: Sequence[Quality],
    extractor: Extractor,
    generated: Features,
    real: Features | None,
    name: str,
) -> Estimates:
    """The requested metrics; ``name``, number of samples and reference, is the end of their names.

    Only the Inception score needs no real images. Inception's metrics have the names of the
    literature; others contain their extractor's name. Raises ValueError for features that are not
    finite, from which some metrics would be ordinary numbers.
    """
    for each in (generated, real):
        if each is not None and not each.isfinite().all():
            raise ValueError("features must be finite; got some that are not")
    found: dict[str, tuple[float, float]] = {}
    if "kid" in also:
        assert real is not None
        found[f"{_kid(extractor)}_{name}"] = (kid(generated, real), math.nan)
    if "precision_recall" in also:
        assert real is not None
        precision, recall = precision_recall(generated, real)
        found[f"precision_{extractor.id}_{name}"] = (precision, math.nan)
        found[f"recall_{extractor.id}_{name}"] = (recall, math.nan)
    if "inception_score" in also:
        assert isinstance(extractor, InceptionExtractor)
        found[f"isc_{name.split('_')[0]}"] = inception_score(extractor, generated)
    return found


def _kid(extractor: Extractor) -> str:
    return "kid" if extractor.id == INCEPTION_ID else f"mmd_{extractor.id}"


def kid(generated: Features, real: Features) -> float:
    """Kernel distance with the polynomial kernel of degree 3, mean over 100 subsets of 1,000.

    arXiv 1801.01401. Raises ValueError for fewer than 1,000 images on either side.
    """
    if min(len(generated), len(real)) < KID_SUBSET:
        raise ValueError(
            f"kid needs at least {KID_SUBSET} images on both sides; "
            f"got {len(generated)} generated and {len(real)} real"
        )
    return torch_fidelity.kid(generated, real)


def precision_recall(generated: Features, real: Features) -> tuple[float, float]:
    """Shares of generated images near real ones, and of real near generated (arXiv 1904.06991).

    With 3 neighbours, as in torch-fidelity. Raises ValueError for fewer than 4 images.
    """
    if min(len(generated), len(real)) < 4:
        raise ValueError(
            "precision and recall need at least 4 images on both sides; "
            f"got {len(generated)} generated and {len(real)} real"
        )
    return torch_fidelity.precision_recall(generated, real)


def inception_score(extractor: InceptionExtractor, generated: Features) -> tuple[float, float]:
    """The mean over 10 random parts (arXiv 1606.03498), and its standard error.

    The deviation that is often reported with the score is sqrt(10) times that error.
    """
    logits = torch.cat([extractor.logits(part).cpu() for part in generated.split(10_000)])
    mean, deviation = torch_fidelity.inception_score(logits)
    return mean, deviation / math.sqrt(10)
