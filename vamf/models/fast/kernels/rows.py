"""Images as rows of channels, one row for each pixel, and sums over rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 128
"""Channels that one program handles."""
WRITE = {"BP": 32, "num_warps": 8}
"""Pixels and warps of a program that writes images; measured on an H200, like the others."""
SUM = {"SPAN": 128, "BP": 16, "num_warps": 2}
"""Pixels that one program sums, in steps of BP."""
TOGETHER = tl.constexpr(4)
"""Spans whose sums are read at a time, as each read takes as long as all of them."""
NARROW = 32
"""Channels that one program sums over rows, and rows that it reads at a time."""
LAST = torch.channels_last


def rows(x: Tensor) -> tuple[Tensor, int]:
    """The same images with channels last, and the distance of neighbouring pixels in memory."""
    _, _, height, width = x.shape
    apart = x.stride(3)
    if x.stride() != (height * width * apart, 1, width * apart, apart):
        x = x.contiguous(memory_format=LAST)
        apart = x.shape[1]
    return x, apart


@triton.jit(do_not_specialize=["M"])
def add_up(x, first, second, third, M, C, BC: tl.constexpr, BP: tl.constexpr):
    """The sums of up to three tables over their rows."""
    k, c = tl.program_id(1), tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros([BP, BC], tl.float32)
    for start in range(0, M, BP):
        row = (start + tl.arange(0, BP))[:, None]
        at = x + (k * M + row) * C + c[None, :]
        total += tl.load(at, mask=(row < M) & (c < C)[None, :], other=0)
    if k == 0:
        tl.store(first + c, tl.sum(total, 0), mask=c < C)
    if k == 1:
        tl.store(second + c, tl.sum(total, 0), mask=c < C)
    if k == 2:
        tl.store(third + c, tl.sum(total, 0), mask=c < C)
