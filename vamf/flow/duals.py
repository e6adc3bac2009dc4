"""Values with tangents beside them, which a network carries through itself layer by layer.

``torch.func.jvp`` carries the tangents of all samples, and keeps the graph of each operation's;
a network that takes a ``Dual`` carries those of the samples that have one, without a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_carried = False


@dataclass(frozen=True)
class Dual:
    """A value and its tangent along some direction, to first order value + epsilon tangent."""

    value: Tensor
    """(batch, ...), with its graph."""
    tangent: Tensor
    """(n, ...), n <= batch, without a graph: that of the last n samples; the others' is 0."""

    def __len__(self) -> int:
        """How many samples."""
        return len(self.value)

    @property
    def still(self) -> int:
        """How many of the first samples have no tangent."""
        return len(self.value) - len(self.tangent)


@contextmanager
def carrying(on: bool = True) -> Iterator[None]:
    """Within, derivatives of the network are taken by giving it duals."""
    global _carried
    before, _carried = _carried, on
    try:
        yield
    finally:
        _carried = before


def are_carried() -> bool:
    """Whether derivatives are taken by giving the network duals."""
    return _carried


def value_of(x: Any) -> Any:
    """The value of a dual; anything else as it is."""
    return x.value if isinstance(x, Dual) else x


def last(args: Sequence[Any], still: int) -> tuple[list[Any], list[Tensor | None]]:
    """Of the samples that move: a function's arguments and their tangents; 0 for constant ones."""
    values = [a[still:] if isinstance(a, Tensor) else a for a in map(value_of, args)]
    tangents = [a.tangent if isinstance(a, Dual) else None for a in args]
    for k, value in enumerate(values):
        if tangents[k] is None and isinstance(value, Tensor):
            tangents[k] = torch.zeros_like(value)
    return values, tangents


def linearly(
    x: Tensor | Dual, whole: Callable[[Tensor], Tensor], linear: Callable[[Tensor], Tensor]
) -> Tensor | Dual:
    """An affine map of a dual, whose tangent goes through the map's ``linear`` part."""
    if not isinstance(x, Dual):
        return whole(x)
    with torch.no_grad():
        tangent = linear(x.tangent)
    return Dual(whole(x.value), tangent)
