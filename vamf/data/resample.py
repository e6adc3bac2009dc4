"""Affine maps of images without aliasing, with reflected borders and twofold wavelet upsampling.

As in the augmentation of Karras et al. (arXiv 2006.06676, appendix B; used by arXiv 2206.00364).
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vamf.typing import Sample

Affine = Float[Tensor, "batch 3 3"]
"""Maps of homogeneous pixel coordinates, (x, y, 1), with the origin in the image's middle."""

SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
"""The symlet of order 6 (Daubechies, 1992): orthogonal to its own even shifts, so that up- and
downsampling by it leaves an image unchanged."""

MARGIN = len(SYM6) // 4
"""Pixels that the filter needs on each side beyond the border of the result."""


def matrix(rows: list[list[Tensor | float]], like: Tensor) -> Affine:
    """One matrix for each sample from entries that are numbers or tensors (batch,)."""
    # Filled on the device of ``like``: copying a number to a GPU would wait for it.
    numbers = {v for row in rows for v in row if not isinstance(v, Tensor)}
    filled: dict[float, Tensor] = {v: torch.full_like(like, v) for v in numbers}
    entries = [v if isinstance(v, Tensor) else filled[v] for row in rows for v in row]
    return torch.stack(entries, -1).unflatten(-1, (len(rows), -1))


def scaling(x: Tensor, y: Tensor) -> Affine:
    """(x, y) -> (x * sx, y * sy)."""
    return matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def rotation(angle: Tensor) -> Affine:
    """Counterclockwise where y points up."""
    cos, sin = angle.cos(), angle.sin()
    return matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], angle)


def translation(x: Tensor, y: Tensor) -> Affine:
    """(x, y) -> (x + tx, y + ty)."""
    return matrix([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


def resample(images: Sample, inverse: Affine) -> Sample:
    """Images (n, C, H, W) whose pixel at p is the given images' pixel at ``inverse`` p.

    Beyond the border images are mirrored once, up to a full width on each side.
    """
    h, w = images.shape[2:]
    # The largest margin for every batch: computing the needed one would wait for the GPU.
    wide = _upsample(F.pad(images, (w - 1, w - 1, h - 1, h - 1), mode="reflect"))
    size = (2 * (h + 2 * MARGIN), 2 * (w + 2 * MARGIN))
    grid = F.affine_grid(
        _normalised(inverse, wide.shape[2:], size)[:, :2],
        [len(images), images.shape[1], *size],
        align_corners=False,
    )
    moved = F.grid_sample(wide, grid, "bilinear", "zeros", align_corners=False)
    return _downsample(moved)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _normalised(inverse: Affine, source: tuple[int, ...], target: tuple[int, ...]) -> Affine:
    """The map between twice finer grids, in torch's coordinates from -1 to 1.

    The finer grids start half a pixel earlier than centred ones would.
    """
    one = inverse.new_ones(len(inverse))
    to_fine = translation(-0.5 * one, -0.5 * one) @ scaling(2 * one, 2 * one)
    from_fine = scaling(0.5 * one, 0.5 * one) @ translation(0.5 * one, 0.5 * one)
    fine = to_fine @ inverse @ from_fine
    outer = scaling(2 / source[1] * one, 2 / source[0] * one)
    return outer @ fine @ scaling(target[1] / 2 * one, target[0] / 2 * one)


def _upsample(x: Sample) -> Sample:
    filter_, pad = _filter(x).flip(-1), (len(SYM6) + 1) // 2
    n, c, h, w = x.shape
    x = torch.stack([x, torch.zeros_like(x)], 4).reshape(n, c, h, 2 * w)[..., :-1]
    x = F.conv2d(x, filter_[:, :, None], groups=c, padding=(0, pad))
    x = torch.stack([x, torch.zeros_like(x)], 3).reshape(n, c, 2 * h, 2 * w)[:, :, :-1]
    return F.conv2d(x, filter_[..., None], groups=c, padding=(pad, 0))


def _downsample(x: Sample) -> Sample:
    filter_, pad, c = _filter(x), (len(SYM6) - 1) // 2, x.shape[1]
    x = F.conv2d(x, filter_[:, :, None], groups=c, stride=(1, 2), padding=(0, pad))
    return F.conv2d(x, filter_[..., None], groups=c, stride=(2, 1), padding=(pad, 0))


def _filter(x: Sample) -> Tensor:
    return _taps(x.dtype, x.device).expand(x.shape[1], 1, -1)


@cache
def _taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(SYM6, dtype=dtype, device=device)
