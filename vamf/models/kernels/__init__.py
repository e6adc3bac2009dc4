"""The groups of ``vamf.models.fused`` as Triton kernels, for images that have channels last.

Each is computed in float32 and rounded once. Images are read as rows, one a pixel, so that a slice
of the channels of a larger image will do.
"""

import os

from vamf.models.kernels.attention import softmax, softmax_tangent
from vamf.models.kernels.normalisation import normalise
from vamf.models.kernels.normalisation_backward import normalise_backward
from vamf.models.kernels.resampling import fir
from vamf.models.kernels.residual import halfway, halfway_backward

__all__ = [
    "fir",
    "halfway",
    "halfway_backward",
    "normalise",
    "normalise_backward",
    "softmax",
    "softmax_tangent",
]

# Triton's default, which it warns of at every first use, as it is to become another one.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
