"""Halves or doubles the size of images with a filter of four taps."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vamf.models.fast.kernels.launch import launch
from vamf.models.fast.kernels.rows import CHANNELS, LAST, WRITE, rows


@triton.jit
def _fir(
    x,
    out,
    ldx,
    C,
    gain,
    H: tl.constexpr,
    W: tl.constexpr,
    UP: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """H and W are the height and width of the output."""
    n, c = tl.program_id(0).to(tl.int64), tl.program_id(2) * BC + tl.arange(0, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    i, j = p // W, p % W
    total = tl.zeros([BP, BC], tl.float32)
    taps: tl.constexpr = 2 if UP else 4
    h: tl.constexpr = H // 2 if UP else H * 2
    w: tl.constexpr = W // 2 if UP else W * 2
    for a in tl.static_range(taps):
        for b in tl.static_range(taps):
            if UP:  # an even pixel has 1/4 of the one before and 3/4 of its own
                k, m = (i + 1) // 2 - 1 + a, (j + 1) // 2 - 1 + b
                down = tl.where((i % 2 == 0) == (a == 0), 0.25, 0.75)
                across = tl.where((j % 2 == 0) == (b == 0), 0.25, 0.75)
            else:
                k, m = 2 * i - 1 + a, 2 * j - 1 + b
                down = 0.125 if (a == 0 or a == 3) else 0.375
                across = 0.125 if (b == 0 or b == 3) else 0.375
            inside = (k >= 0) & (k < h) & (m >= 0) & (m < w) & (p < H * W)
            mask = inside[:, None] & (c < C)[None, :]
            at = x + (n * h * w + (k * w + m)[:, None]) * ldx + c[None, :]
            value = tl.load(at, mask=mask, other=0).to(tl.float32)
            if UP:
                total += value * (down * across)[:, None]
            else:
                total += value * (down * across)
    mask = (p < H * W)[:, None] & (c < C)[None, :]
    tl.store(out + (n * H * W + p[:, None]) * C + c[None, :], total * gain, mask=mask)


def fir(x: Tensor, gain: float, *, up: bool) -> Tensor:
    """As ``reference_ops.fir``."""
    (x, ldx), (n, c, height, width) = rows(x), x.shape
    height, width = (2 * height, 2 * width) if up else (height // 2, width // 2)
    shape = (n, c, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)
    launch(
        _fir,
        (n, triton.cdiv(height * width, WRITE["BP"]), triton.cdiv(c, CHANNELS)),
        x,
        out,
        ldx,
        c,
        gain,
        height,
        width,
        up,
        BC=CHANNELS,
        **WRITE,
    )
    return out
