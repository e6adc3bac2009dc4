"""torch-fidelity's metrics of features, and its Inception network.

Its public interface, ``calculate_metrics``, takes images and generates features itself. The
functions behind it that take features, and the constructors of its networks, are not documented.
torch-fidelity takes seconds to import, so each function imports what it needs.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INCEPTION = "inception-v3-compat"
"""torch-fidelity's name of the Inception network of 2015-12-05."""
POOL3 = "2048"
"""Its name of the layer whose features define the FID."""


def inception(weights: Path) -> nn.Module:
    """The Inception network on the CPU: uint8 images (n, 3, H, W) to ((n, 2048),).

    ``torch_fidelity.utils.create_feature_extractor`` is not exported; without it there is no FID.
    """
    from torch_fidelity.utils import create_feature_extractor

    return create_feature_extractor(
        INCEPTION, [POOL3], cuda=False, feature_extractor_weights_path=str(weights)
    )


def untrained_inception() -> nn.Module:
    """The same network with random weights, for timing it where the weights are missing.

    Relies on the constructor reading a file and passing the result to ``load_state_dict``; if it
    stops doing so, benchmarks without the weights fail.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Network(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """Keeps the random weights."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Network(INCEPTION, [POOL3], feature_extractor_weights_path=empty)


def kid(generated: Tensor, real: Tensor) -> float:
    """The mean over 100 subsets of 1,000 of features (n, d) and (m, d); n and m at least 1,000.

    ``kid_features_to_metric`` is not documented; without it there is no KID.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    return kid_features_to_metric(generated, real, verbose=False)[KEY_METRIC_KID_MEAN]


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Precision and recall with 3 neighbours of features (n, d) and (m, d).

    ``prc_features_to_metric`` is not documented; without it there is no precision and recall.
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    found = prc_features_to_metric(generated, real, verbose=False, save_cpu_ram=True)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over 10 random parts of logits (n, 1008) on the CPU.

    ``isc_features_to_metric`` is not documented; without it there is no Inception score.
    """
    from torch_fidelity.metric_isc import (
        KEY_METRIC_ISC_MEAN,
        KEY_METRIC_ISC_STD,
        isc_features_to_metric,
    )

    found = isc_features_to_metric(logits)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]
