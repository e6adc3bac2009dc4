"""The shipped classifiers as feature extractors of torch-fidelity, to compare metrics with."""

from typing import Any

import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from vamf.metrics.cnn import CNN, DIM, SHIPPED
from vamf.strict_fp32 import strict_fp32
from vamf.typing import Features, Pixels

LAYER = str(DIM)


class FidelityCNN(FeatureExtractorBase):
    """The classifier of that name: one layer of features, named by its width as theirs are."""

    def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
        """``settings`` are torch-fidelity's and do not concern a network with fixed weights."""
        super().__init__(name, features_list)
        self.network = CNN.load(name)

    def forward(self, images: Pixels) -> tuple[Features]:
        """A tuple with the only layer, (n, 64)."""
        with strict_fp32():
            return (self.network(images),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The only layer's name."""
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The only layer, for every metric."""
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        """Compilation may change the features' last digits."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Pixels:
        """One black digit; nothing is compiled."""
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)


def register() -> None:
    """Lets ``torch_fidelity.calculate_metrics`` take each shipped classifier by its name."""
    for name in SHIPPED:
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, FidelityCNN)
