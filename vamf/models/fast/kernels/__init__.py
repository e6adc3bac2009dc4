"""The groups of ``vamf.models.fast.fused`` as Triton kernels, for images with channels last.

Each computes in float32 and rounds once; matrix products have rounded factors. Images are read as
rows, one for each pixel, so a slice of the channels of a larger image needs no copy.
"""

import os

from vamf.models.fast.kernels.attention import softmax, softmax_tangent
from vamf.models.fast.kernels.normalisation import normalise
from vamf.models.fast.kernels.normalisation_backward import normalise_backward
from vamf.models.fast.kernels.resampling import fir
from vamf.models.fast.kernels.residual import scaled_sum, scaled_sum_backward
from vamf.models.fast.kernels.token_attention import attend, attend_backward

__all__ = [
    "attend",
    "attend_backward",
    "fir",
    "normalise",
    "normalise_backward",
    "scaled_sum",
    "scaled_sum_backward",
    "softmax",
    "softmax_tangent",
]

# Triton's default; if it is not set, Triton warns at first use that the default will change.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
