"""Memory in which images come to lie behind one another, so that joining them copies nothing."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Room:
    """Memory for images that are to lie behind one another along the channels of one.

    Whoever makes one of them may write it there. It serves one pass, in which each image is written
    once; what else is to be joined alike, as their tangents, has a ``what`` of its own.
    """

    def __init__(self, *channels: int) -> None:
        self._channels = channels
        self._whole: dict[str, Tensor] = {}
        self._written: set[tuple[str, int]] = set()

    def place(self, index: int, like: Tensor, what: str) -> Tensor:
        """Where to write the image ``index``, of the size of another; (batch, channels, H, W)."""
        self._written.add((what, index))
        return self._parts(like, what)[index]

    def join(self, parts: Sequence[Tensor], what: str) -> Tensor:
        """All of them; those that were not written here are copied."""
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
        # No views, of which torch would say that others' writing has changed them.
        return [
            whole.new_empty(0).set_(memory, start, (n, c, *pixels), strides)
            for start, c in zip(starts, self._channels, strict=False)
        ]


class Place(NamedTuple):
    """Where in a room an image is to be written."""

    room: Room
    part: int
