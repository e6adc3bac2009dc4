"""One pass of a network for both of its outputs: u, and the velocity of its head."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import nn

from vamf.flow.duals import value_of
from vamf.typing import Time


class _Pass(NamedTuple):
    r: Time
    t: Time
    features: tuple[Any, ...]


_passes: ContextVar[dict[nn.Module, _Pass] | None] = ContextVar("passes", default=None)


@contextmanager
def sharing_passes() -> Iterator[None]:
    """Within the block, ``velocity`` of vamf's networks uses the features of an earlier u.

    Those of the first pass with a graph, if its r and t are the same tensors. z, labels and dropout
    masks must not differ between the two; weights must not change within the block.
    """
    token = _passes.set({})
    try:
        yield
    finally:
        _passes.reset(token)


def keep(net: nn.Module, r: Time, t: Time, *features: Any) -> None:
    """Keeps what a network's output layers take, at the times ``r`` and ``t``, or duals of them."""
    passes = _passes.get()
    if passes is not None and torch.is_grad_enabled() and net not in passes:
        passes[net] = _Pass(value_of(r), value_of(t), tuple(map(value_of, features)))


def kept(net: nn.Module, r: Time, t: Time) -> tuple[Any, ...] | None:
    """What was kept of a network at these times, if anything, with its graph."""
    found = (_passes.get() or {}).get(net)
    if found is None or not torch.is_grad_enabled() or found.r is not r or found.t is not t:
        return None
    return found.features
