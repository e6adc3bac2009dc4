"""Dual numbers: values with their tangents, which a network propagates layer by layer.

``torch.func.jvp`` carries the tangents of all samples, and keeps the graph of each operation's;
a network that takes a ``Dual`` propagates those of the samples that have one, without a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_dual_mode: ContextVar[bool] = ContextVar("dual_mode", default=False)


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
    def n_constant(self) -> int:
        """How many of the first samples have no tangent."""
        return len(self.value) - len(self.tangent)


@contextmanager
def dual_mode(on: bool = True) -> Iterator[None]:
    """Within the block, derivatives of a network are taken by passing it duals; then as before."""
    token = _dual_mode.set(on)
    try:
        yield
    finally:
        _dual_mode.reset(token)


def in_dual_mode() -> bool:
    """Whether derivatives are taken by passing duals to the network."""
    return _dual_mode.get()


def value_of(x: Any) -> Any:
    """The value of a dual; anything else as it is."""
    return x.value if isinstance(x, Dual) else x


def last(args: Sequence[Any], n_constant: int) -> tuple[list[Any], list[Tensor | None]]:
    """Arguments and tangents of the samples behind the first ``n_constant``; 0 for a constant."""
    values = [a[n_constant:] if isinstance(a, Tensor) else a for a in map(value_of, args)]
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
