"""Tensors that are adjacent in memory, so that one operation can process all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 16
"""Bytes that a kernel loads at once; each tensor starts at a multiple of it."""


def side_by_side(like: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised adjacent tensors with the shapes and strides of others, which have no gaps."""
    sizes = [_padded(t, dtype) for t in like]
    parts = torch.empty(sum(sizes), dtype=dtype, device=like[0].device).split(sizes)
    return [part.as_strided(t.shape, t.stride()) for part, t in zip(parts, like, strict=True)]


def memory_of(tensors: Sequence[Tensor]) -> Tensor | None:
    """The memory (n,) of ``tensors`` if they are adjacent and it holds nothing else; else None."""
    first = tensors[0]
    memory, dtype = first.untyped_storage(), first.dtype
    places = {(t.untyped_storage().data_ptr(), t.dtype) for t in tensors}
    size = sum(_padded(t, dtype) for t in tensors)
    if places != {(memory.data_ptr(), dtype)} or size * dtype.itemsize != memory.nbytes():
        return None
    return first.new_empty(0).set_(memory, 0, (size,), (1,))


def _padded(t: Tensor, dtype: torch.dtype) -> int:
    each = ALIGNED // dtype.itemsize
    return -(-t.numel() // each) * each
