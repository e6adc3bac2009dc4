"""Convolutions without a graph, of a batch at once or in halves, whichever this GPU does faster.

For some shapes cuDNN expects the most of a kernel that is a third slower than the one which it
takes for half of the images.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

LESS = 0.9
"""The part of a batch's time that its halves may take at most."""
REPEATS = 5
"""Convolutions that are timed together."""

_halved: dict[Hashable, bool] = {}


def convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without its bias, x (batch, channels, H, W); halves only in bfloat16.

    They are taken only where they have given the same bits, at the first images of a shape.
    """
    if not _may_halve(x):
        return whole(conv, x)
    shape = x.shape, conv.weight.shape, conv.stride, conv.padding, conv.dilation, x.device
    if shape not in _halved and not torch.cuda.is_current_stream_capturing():
        _halved[shape] = _pays(conv, x)
    return in_halves(conv, x) if _halved.get(shape) else whole(conv, x)


def _may_halve(x: Tensor) -> bool:
    on = x.is_cuda and x.dtype == torch.bfloat16 and not torch.version.hip
    return on and len(x) > 1 and not torch.is_grad_enabled()


def whole(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """By one convolution."""
    return conv._conv_forward(x, conv.weight, None)


def in_halves(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """On a GPU, by two, which write into one result with channels last."""
    size, last = (len(x), *whole(conv, x[:0]).shape[1:]), torch.channels_last
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=last)
    how, cudnn = (conv.padding, conv.stride, conv.dilation, conv.groups), torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic, True
    for a, b in zip(x.chunk(2), out.chunk(2), strict=True):
        torch.ops.aten.cudnn_convolution.out(a, conv.weight, *how, *flags, out=b)
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
