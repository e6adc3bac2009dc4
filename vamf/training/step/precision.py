"""Number formats of a network's computation; weights and optimiser state stay in float32."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from vamf.compat.torch import copy_all_
from vamf.contiguous import side_by_side
from vamf.experiment_settings import Compute
from vamf.flow.duals import in_dual_mode
from vamf.models.fast.fused import require_compiler
from vamf.typing import AverageVelocity, Label, Sample, Time

_rounded: ContextVar[dict[nn.Module, dict[str, Tensor]] | None] = ContextVar(
    "rounded", default=None
)
"""Cache of networks' rounded weights, set within ``rounding_once``."""


def in_precision(net: nn.Module, compute: Compute) -> AverageVelocity:
    """The network itself, or the network with its weights rounded to bfloat16 at every call.

    The rounded network takes and returns the same types; gradients reach the float32 weights.
    Normalisation statistics, softmax and time embeddings stay in float32.
    """
    if compute.precision != "bfloat16":
        return net

    def rounded(z: Sample, r: Time, t: Time, *y: Label) -> Sample:
        return functional_call(net, _rounded_weights(net), (z, r, t, *y))

    return rounded


def head_in_precision(net: nn.Module, compute: Compute) -> Callable[..., Sample]:
    """As ``in_precision``, of the network's method ``velocity``: its velocity head."""
    if compute.precision != "bfloat16":
        return net.velocity  # type: ignore[return-value]
    head = _Head(net)

    def rounded(z: Sample, t: Time, *y: Label, **r: Time) -> Sample:
        weights = {f"net.{name}": w for name, w in _rounded_weights(net).items()}
        return functional_call(head, weights, (z, t, *y), r)

    return rounded


class _Head(nn.Module):
    """The velocity head as a module's own function, which ``functional_call`` needs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **r: Time) -> Sample:
        return self.net.velocity(*args, **r)  # type: ignore[operator]


def _rounded_weights(net: nn.Module) -> dict[str, Tensor]:
    """The weights in bfloat16 by name, the same ones within ``rounding_once``."""
    shared = _rounded.get()
    found = {} if shared is None else shared
    if net not in found:
        names = [name for name, _ in net.named_parameters()]
        weights = _Rounded.apply if in_dual_mode() else _each
        with nullcontext() if shared is None else torch.enable_grad():  # for later calls
            found[net] = dict(zip(names, weights(*net.parameters()), strict=True))
    return found[net]


@contextmanager
def rounding_once() -> Iterator[None]:
    """Within the block, a network's weights are rounded only at its first call.

    They must not change within the block, and derivatives must be taken by duals.
    """
    token = _rounded.set({})
    try:
        yield
    finally:
        _rounded.reset(token)


def _each(*weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(weight.bfloat16() for weight in weights)


class _Rounded(Function):
    """Rounds all weights with a few kernels; ``torch.func`` cannot differentiate it.

    The gradients are contiguous in memory, so workers average them with one message.
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
    copy_all_(to, tensors)
    return tuple(to)


def require(compute: Compute, device: torch.device) -> None:
    """Raises ValueError, before anything is read or computed, if this GPU lacks the precision."""
    if device.type != "cuda":
        return
    if compute.precision == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            "bfloat16 needs a GPU of compute capability 8.0 or more; got "
            f"{torch.cuda.get_device_name(device)}: set compute.precision to float32"
        )
    if compute.compile:
        require_compiler()


@contextmanager
def matmul_precision(compute: Compute) -> Iterator[None]:
    """Within the block, sets whether TF32 may round the factors of float32 products.

    This affects matrix products and convolutions, also in the backward pass. The former settings
    are restored at the end.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    exact = compute.precision == "float32"
    try:
        _set_matmul_precision("highest" if exact else "high", not exact)
        yield
    finally:
        _set_matmul_precision(*before)


def _set_matmul_precision(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
