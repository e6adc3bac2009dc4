"""In which numbers a network is computed; its weights and their optimiser stay in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from vamf.experiment import Compute
from vamf.flow.duals import are_carried
from vamf.memory import side_by_side
from vamf.models.fused import require_compiler
from vamf.typing import AverageVelocity, Label, Sample, Time


def in_precision(net: nn.Module, compute: Compute) -> AverageVelocity:
    """The network as it is, or with its weights rounded to bfloat16 at every call.

    Rounded, it takes and returns what it did, and gradients reach the weights. Statistics of
    normalisations, softmax and the embedding of times stay in float32 inside.
    """
    if compute.precision != "bfloat16":
        return net

    names = [name for name, _ in net.named_parameters()]

    def rounded(z: Sample, r: Time, t: Time, *y: Label) -> Sample:
        kept = {} if _kept is None else _kept
        if id(net) not in kept:
            weights = _Rounded.apply if are_carried() else _each
            with nullcontext() if _kept is None else torch.enable_grad():  # for calls to come
                kept[id(net)] = dict(zip(names, weights(*net.parameters()), strict=True))
        return functional_call(net, kept[id(net)], (z, r, t, *y))

    return rounded


_kept: dict[int, dict[str, Tensor]] | None = None
"""Rounded weights of networks, by their identity, where they are to be kept."""


@contextmanager
def rounding_once() -> Iterator[None]:
    """Within, a network's weights, which must not change meanwhile, are rounded at one call of it.

    Of duals, or of what is computed like them.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def _each(*weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(weight.bfloat16() for weight in weights)


class _Rounded(Function):
    """The same by a few kernels in all, which ``torch.func`` has no derivatives of.

    The weights' gradients lie side by side: workers average them by one message.
    """

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.weights = [weight.detach() for weight in weights]
        to = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights]
        return _cast(weights, to)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _cast(gradients, side_by_side(ctx.weights, ctx.weights[0].dtype))


def _cast(tensors: Sequence[Tensor], to: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch._foreach_copy_(list(to), list(tensors))
    return tuple(to)


def require(compute: Compute, device: torch.device) -> None:
    """Raises ValueError, before anything is read or computed, if this GPU cannot compute so."""
    if device.type != "cuda":
        return
    if compute.precision == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            "bfloat16 needs a GPU of compute capability 8.0 or more; got "
            f"{torch.cuda.get_device_name(device)}: set compute.precision to float32"
        )
    if compute.compile:
        require_compiler()


def allow(compute: Compute) -> None:
    """Sets for this process whether products of float32 matrices may be rounded to TF32."""
    exact = compute.precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
