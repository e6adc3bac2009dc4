"""KID, precision and recall, and the Inception score: torch-fidelity's own, of features made here.

torch-fidelity's functions take features and give figures; this module names them by what they
depend on, and says in one line what they need.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch

from vamf.metrics.extractors import INCEPTION_ID, Extractor, InceptionExtractor
from vamf.typing import Features

Quality = Literal["kid", "precision_recall", "inception_score"]

KID_SUBSET = 1000
"""Images of each side in each of KID's 100 subsets (arXiv 1801.01401)."""

Figures = dict[str, tuple[float, float]]
"""Values with their standard errors; the error is NaN where none is known."""


def check(also: Sequence[Quality], inception: bool, samples: int) -> None:
    """Raises ValueError for figures that these features, or so few images, do not give."""
    if "inception_score" in also and not inception:
        raise ValueError("inception_score needs the extractor inception; got another one")
    if "kid" in also and samples < KID_SUBSET:
        raise ValueError(f"kid needs at least {KID_SUBSET} samples; got {samples}")


def figures(
    also: Sequence[Quality],
    extractor: Extractor,
    generated: Features,
    real: Features | None,
    name: str,
) -> Figures:
    """The figures asked for, by a name that ends in ``name``: number of samples and reference.

    The Inception score alone needs no real images. Only Inception's figures are called as in the
    literature; others carry their extractor's name. Raises ValueError for features that are not
    finite, of which some of these figures would be ordinary numbers.
    """
    for each in (generated, real):
        if each is not None and not each.isfinite().all():
            raise ValueError("features must be finite; got some that are not")
    found: Figures = {}
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

    Raises ValueError for fewer images on either side.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    if min(len(generated), len(real)) < KID_SUBSET:
        raise ValueError(
            f"kid needs at least {KID_SUBSET} images on both sides; "
            f"got {len(generated)} generated and {len(real)} real"
        )
    return kid_features_to_metric(generated, real, verbose=False)[KEY_METRIC_KID_MEAN]


def precision_recall(generated: Features, real: Features) -> tuple[float, float]:
    """Shares of generated images near real ones, and of real near generated (arXiv 1904.06991).

    With 3 neighbours, as torch-fidelity takes it. Raises ValueError for fewer than 4 images.
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    if min(len(generated), len(real)) < 4:
        raise ValueError(
            "precision and recall need at least 4 images on both sides; "
            f"got {len(generated)} generated and {len(real)} real"
        )
    found = prc_features_to_metric(generated, real, verbose=False, save_cpu_ram=True)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def inception_score(extractor: InceptionExtractor, generated: Features) -> tuple[float, float]:
    """The mean over 10 random parts (arXiv 1606.03498), and its standard error.

    The deviation that is often printed behind the score is sqrt(10) times that error.
    """
    from torch_fidelity.metric_isc import (
        KEY_METRIC_ISC_MEAN,
        KEY_METRIC_ISC_STD,
        isc_features_to_metric,
    )

    logits = torch.cat([extractor.logits(part).cpu() for part in generated.split(10_000)])
    found = isc_features_to_metric(logits)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD] / math.sqrt(10)
