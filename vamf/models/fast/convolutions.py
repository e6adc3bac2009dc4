"""Convolutions without a graph, of a whole batch or of its halves, whichever is faster on this GPU.

For some shapes cuDNN's heuristic picks a kernel that is a third slower than the one it picks for
half of the batch.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vamf.compat.torch import cudnn_convolution_into

LESS = 0.9
"""Halves are used if they take less than this part of the whole batch's time."""
REPEATS = 5
"""Number of convolutions in each time measurement."""

_halved: dict[Hashable, bool] = {}
_decides = True


def convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without its bias, x (batch, channels, H, W); in halves only in bfloat16.

    Halves are used only if they give the same bits for the first images of a shape.
    """
    if not _may_halve(x):
        return whole(conv, x)
    shape = x.shape, conv.weight.shape, conv.stride, conv.padding, conv.dilation, x.device
    if shape not in _halved and _decides and not torch.cuda.is_current_stream_capturing():
        _halved[shape] = _pays(conv, x)
    return in_halves(conv, x) if _halved.get(shape) else whole(conv, x)


@contextmanager
def undecided() -> Iterator[None]:
    """Within the block no shape is decided on: images have arbitrary values, or the GPU is shared.

    Shapes that are not decided on are convolved whole.
    """
    global _decides
    before, _decides = _decides, False
    try:
        yield
    finally:
        _decides = before


def _may_halve(x: Tensor) -> bool:
    on = x.is_cuda and x.dtype == torch.bfloat16 and not torch.version.hip
    return on and len(x) > 1 and not torch.is_grad_enabled()


def whole(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolves the whole batch at once."""
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def in_halves(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolves two halves of the batch, which write to one result with channels last; GPU only."""
    size, last = (len(x), *whole(conv, x[:0]).shape[1:]), torch.channels_last
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=last)
    for a, b in zip(x.chunk(2), out.chunk(2), strict=True):
        cudnn_convolution_into(b, a, conv)
    return out


def _pays(conv: nn.Conv2d, x: Tensor) -> bool:
    if not torch.equal(whole(conv, x), in_halves(conv, x)):
        return False
    return _milliseconds(in_halves, conv, x) < LESS * _milliseconds(whole, conv, x)


def _milliseconds(way: Callable[[nn.Conv2d, Tensor], Tensor], conv: nn.Conv2d, x: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    way(conv, x)
    start.record()
    for _ in range(REPEATS):
        way(conv, x)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
