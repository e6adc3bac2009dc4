"""Preallocated buffers for channel concatenation without a copy."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class ConcatBuffer:
    """Memory for images that will be concatenated along their channels.

    The function that computes an image may write it here. A buffer serves one pass, which writes
    each image once. Tangents are concatenated in the same way, under a separate ``what``.
    """

    def __init__(self, *channels: int) -> None:
        self._channels = channels
        self._whole: dict[str, Tensor] = {}
        self._written: set[tuple[str, int]] = set()

    def place(self, index: int, like: Tensor, what: str) -> Tensor:
        """Memory for image ``index``, (batch, channels, H, W) with H and W those of ``like``."""
        self._written.add((what, index))
        return self._parts(like, what)[index]

    def join(self, parts: Sequence[Tensor], what: str) -> Tensor:
        """The concatenation; images that are not in the buffer yet are copied to it."""
        for index, (to, part) in enumerate(zip(self._parts(parts[0], what), parts, strict=True)):
            if (what, index) not in self._written:
                to.copy_(part)
        return self._whole.pop(what)

    def _parts(self, like: Tensor, what: str) -> list[Tensor]:
        if what not in self._whole:
            size, last = (len(like), sum(self._channels), *like.shape[2:]), torch.channels_last
            new = torch.empty(size, dtype=like.dtype, device=like.device, memory_format=last)
            self._whole[what] = new
        whole, starts = self._whole[what], accumulate(self._channels, initial=0)
        memory, strides, (n, _, *pixels) = whole.untyped_storage(), whole.stride(), whole.shape
        # Not views: torch would report that writing one image has modified the others.
        return [
            whole.new_empty(0).set_(memory, start, (n, c, *pixels), strides)
            for start, c in zip(starts, self._channels, strict=False)
        ]


class BufferSlot(NamedTuple):
    """The part of a buffer to which an image is written."""

    buffer: ConcatBuffer
    part: int
