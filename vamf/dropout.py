"""Dropout masks that all evaluations of a network in one step share.

A loss evaluates the network several times at the same samples: u, its derivative, its proxy, and in
alpha-Flow its value at an earlier time. These belong to one function of (z, r, t) only if each
sample keeps its masks, as in the authors' code, where one forward-mode pass gives value and
derivative (arXiv 2505.13447).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Masks:
    """The masks of a batch, one for each layer, drawn when the layer is first evaluated."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._drawn: dict[nn.Module, Tensor] = {}

    def of(self, layer: nn.Module, x: Tensor, p: float) -> Tensor:
        """The values of ``x`` (n, ...) to keep, as booleans: the masks of the last n samples."""
        if len(x) > self.samples:
            raise ValueError(f"masks of {self.samples} samples were asked for {len(x)}")
        if layer not in self._drawn:
            self._drawn[layer] = _draw((self.samples, *x.shape[1:]), x.device, p)
        return self._drawn[layer][self.samples - len(x) :]

    def at(self, rows: Tensor) -> "Masks":
        """The masks, as far as they are drawn, of the samples with indices ``rows`` (n,)."""
        chosen = Masks(len(rows))
        chosen._drawn = {layer: mask[rows] for layer, mask in self._drawn.items()}
        return chosen


def _draw(shape: tuple[int, ...], device: torch.device, p: float) -> Tensor:
    """Draws from torch's default generator, with channels last: the layout of x changes no mask."""
    n, channels, *space = shape
    mask = torch.empty((n, *space, channels), dtype=torch.bool, device=device).bernoulli_(1 - p)
    return mask.movedim(-1, 1)


_masks: ContextVar[Masks | None] = ContextVar("masks", default=None)
_off: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def sharing(masks: Masks) -> Iterator[None]:
    """Within the block, dropout uses these masks; elsewhere each evaluation draws its own."""
    token = _masks.set(masks)
    try:
        yield
    finally:
        _masks.reset(token)


def mask_of(layer: nn.Module, x: Tensor, p: float) -> Tensor | None:
    """The values of ``x`` that a layer keeps, each with probability 1 - p; None if it keeps all."""
    if not (layer.training and p > 0) or _off.get():
        return None
    return (_masks.get() or Masks(len(x))).of(layer, x, p)


def without_dropout(function: Callable[..., T]) -> Callable[..., T]:
    """Wraps a function so that it runs without dropout, as in evaluation mode."""

    def evaluated(*args: Any) -> T:
        token = _off.set(True)
        try:
            return function(*args)
        finally:
            _off.reset(token)

    return evaluated
