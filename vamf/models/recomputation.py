"""Blocks that the backward pass computes again, so that their inside needs no memory until then.

torch's checkpointing keeps what a block computes for its backward pass until the block ends, and
computes it again later. Here the second time has the same weights, rounded or not, and the same
dropout masks; and it leaves tangents out, which have no gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from vamf.flow.duals import Dual, value_of

_on: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def recomputing(on: bool = True) -> Iterator[None]:
    """Within the block, ``again_backward`` saves memory; elsewhere it only calls its function."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


class _Call(nn.Module):
    """A function of a layer as a module, of which ``functional_call`` can replace the weights."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *args: Any) -> Any:
        return self.function(self.layer, *args)


def again_backward(
    layer: nn.Module,
    function: Callable[..., Any],
    *args: Any,
    again: Callable[..., Any] | None = None,
) -> Any:
    """``function(layer, *args)``, tensors or duals: one, or a tuple.

    ``again`` is the function for the backward pass, if it is another; it takes tensors only.
    """
    if not (_on.get() and torch.is_grad_enabled()):
        return function(layer, *args)
    second, context = _Call(layer, again or function), copy_context()
    # functional_call has set these: they are not the layer's own ones in the backward pass.
    weights: dict[str, Tensor] = {f"layer.{n}": w for n, w in layer.named_parameters()}
    given, out = [args], []  # emptied: tangents need no memory until the backward pass

    def run(*values: Tensor) -> Any:
        if not given:  # the backward pass, in a thread of its own
            return context.run(functional_call, second, weights, values)
        out.append(function(layer, *given.pop()))
        return _each(value_of, out[0])

    values = checkpoint(run, *map(value_of, args), use_reentrant=False, preserve_rng_state=False)
    return _each(_with_tangent, values, out.pop())


def _with_tangent(value: Tensor, of: Tensor | Dual) -> Tensor | Dual:
    return Dual(value, of.tangent) if isinstance(of, Dual) else value


def _each(function: Callable[..., Any], *outs: Any) -> Any:
    """The function of each output of a layer, or of its only one."""
    return tuple(map(function, *outs)) if isinstance(outs[0], tuple) else function(*outs)
