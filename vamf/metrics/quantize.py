"""Converts generated images to uint8 pixels."""

import torch

from vamf.typing import Pixels, Sample


def to_uint8(images: Sample) -> Pixels:
    """Images in [-1, 1] rounded half up to 0 ... 255; values outside the range are clamped.

    Exact inverse of k / 127.5 - 1 at all 256 levels, which flooring 127.5 (x + 1) is not.
    Raises ValueError for integers, and for NaN or infinity: a diverged model is not measured.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [-1, 1]; got {images.dtype}")
    finite = torch.isfinite(images)
    if not finite.all():
        bad = int(finite.logical_not().sum())
        raise ValueError(f"images must be finite; got {bad} of {images.numel()} values not finite")
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
