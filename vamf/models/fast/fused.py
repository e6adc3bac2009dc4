"""Groups of a network's operations that become two or three kernels each on a GPU.

Between two convolutions, memory bandwidth is the limit: each group reads its input twice and writes
its output once, in the forward pass, with the tangent, and in the backward pass. There are two
implementations: ``vamf.models.fast.reference_ops``, for the CPU and float64, and the Triton kernels
of ``vamf.models.fast.kernels``.
"""

import math
import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vamf.compat.torch import allow_recompilations
from vamf.flow.duals import Dual, in_dual_mode, last, linearly, value_of
from vamf.models.fast import reference_ops
from vamf.models.fast.concat_buffer import BufferSlot, ConcatBuffer
from vamf.models.fast.convolutions import convolution

TRITON = find_spec("triton") is not None
PROGRAMS = 128
"""Shapes and numbers for which a group is compiled, as one process may train several experiments;
torch's default is eight. Others are computed without compilation."""
HALF = math.sqrt(0.5)
"""Factor by which the sum of two values of variance 1 has variance 1."""


def require_compiler() -> None:
    """Raises ValueError if Triton is installed but cannot compile its C code for a GPU."""
    if not TRITON:
        return
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    schemes = (sysconfig.get_default_scheme(), "posix_prefix")  # on Debian, Triton uses the second
    headers = [Path(sysconfig.get_paths(scheme)["include"]) / "Python.h" for scheme in schemes]
    header = next((path for path in headers if path.exists()), None)
    if not (compiler and header):
        raise ValueError(
            "compiled steps on a GPU need a C compiler (gcc, clang, or CC's) and Python's headers; "
            f"got {compiler or 'no compiler'} and {header or f'no {headers[0]}'}; "
            "install them (gcc, python3-dev), or set compute.compile to false"
        )


class Normalisation(NamedTuple):
    """The constants of a group normalisation and of the operations after it."""

    groups: int
    eps: float
    activate: bool
    """Whether SiLU follows."""
    dropout: float
    """The probability of the dropout that follows."""


def ops_for(x: Tensor) -> Any:
    """The module that implements the groups for this tensor's device and type."""
    if TRITON and x.is_cuda and x.dtype != torch.float64:
        from vamf.models.fast import kernels

        return kernels
    return reference_ops


class _Normalise(Function):
    """Returns y, ``copies`` of x, and dy; one kernel adds the gradients of all copies."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        offset: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        d: Tensor | None,
        moving: Tensor | None,
        kept: Tensor | None,
        n: Normalisation,
        copies: int,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        y, dy, coefficients = ops_for(x).normalise(
            x, d, shift, offset, moving, weight, bias, kept, **n._asdict()
        )
        ctx.save_for_backward(x, kept, coefficients, weight)
        ctx.n, ctx.shifted = n, shift is not None
        if dy is not None:
            ctx.mark_non_differentiable(dy)
        return y, *(x.view_as(x) for _ in range(copies)), dy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        x, kept, coefficients, weight = ctx.saved_tensors
        beside = tuple(other for other in others[:-1] if other is not None)
        if g is None:
            raise RuntimeError("a normalised value was not used")
        gx, gs, go, *rest = ops_for(x).normalise_backward(
            g, beside, x, kept, coefficients, weight, **ctx.n._asdict()
        )
        shifts = (gs, go) if ctx.shifted else (None, None)
        return gx, *shifts, *rest, *[None] * 5


def normalise(
    x: Tensor | Dual,
    shift: Tensor | Dual | None,
    offset: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    n: Normalisation,
    copies: int = 0,
    kept: Tensor | None = None,
) -> tuple[Tensor | Dual, ...]:
    """dropout(silu(group_norm(x + shift + offset))), x (batch, C, H, W), shift (batch, C).

    ``offset`` (C,) is used only with a shift. Statistics are computed in at least float32. A shift
    with a tangent needs an x with a tangent. Also returns ``copies`` of x for other uses: the
    gradients of all are added in the kernel that computes that of x. ``kept`` are the values that
    dropout keeps, as booleans of the shape of x.
    """
    d, moving = _tangent(x), _tangent(shift)
    value = None if shift is None else value_of(shift)
    out = _Normalise.apply(value_of(x), value, offset, weight, bias, d, moving, kept, n, copies)
    if d is None:
        return out[:-1]
    return Dual(out[0], out[-1]), *(Dual(copy, d) for copy in out[1:-1])


def _tangent(x: Tensor | Dual | None) -> Tensor | None:
    return x.tangent if isinstance(x, Dual) else None


class _Residual(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor, place: BufferSlot | None) -> Tensor:
        ctx.save_for_backward(bias)
        return _scaled_sum(x, y, bias, place, "value")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        back, gb = ops_for(g).scaled_sum_backward(g, *ctx.saved_tensors, HALF)
        return back, back, gb, None


def _scaled_sum(
    x: Tensor, y: Tensor, bias: Tensor | None, place: BufferSlot | None, what: str
) -> Tensor:
    to = None if place is None else place.buffer.place(place.part, x, what)
    return ops_for(x).scaled_sum(x, y, bias, HALF, to)


def residual(
    x: Tensor | Dual, y: Tensor | Dual, bias: Tensor, place: BufferSlot | None = None
) -> Tensor | Dual:
    """(x + y + bias) sqrt(1/2), ``bias`` (C,); x and y both have tangents, or neither has."""
    value = _Residual.apply(value_of(x), value_of(y), bias, place)
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(value, _scaled_sum(x.tangent, y.tangent, None, place, "tangent"))
    return value


class _Joined(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, buffer: ConcatBuffer) -> Tensor:
        ctx.channels = x.shape[1], y.shape[1]
        return buffer.join((x, y), "value")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        return *g.split(ctx.channels, 1), None


def joined(x: Tensor | Dual, y: Tensor | Dual, buffer: ConcatBuffer) -> Tensor | Dual:
    """Concatenates two images along the channels; both have tangents, or neither has.

    One or both of them may already be in ``buffer``.
    """
    value = _Joined.apply(value_of(x), value_of(y), buffer)
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(value, buffer.join((x.tangent, y.tangent), "tangent"))
    return value


class _Resample(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool) -> Tensor:
        ctx.up = up
        return ops_for(x).fir(x, 1.0, up=up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        # Each is the adjoint of the other, except for the gain of 4 that preserves the mean.
        return ops_for(g).fir(g, 4.0 if ctx.up else 0.25, up=not ctx.up), None


def resample(x: Tensor | Dual, *, up: bool) -> Tensor | Dual:
    """Doubles or halves height and width (even) with the FIR filter [1, 3, 3, 1], zero-padded."""
    apply: Callable[[Tensor], Tensor] = partial(_resample, up)
    return linearly(x, apply, apply)


def _resample(up: bool, x: Tensor) -> Tensor:
    return _Resample.apply(x, up)


def convolve(x: Tensor | Dual, conv: nn.Conv2d) -> Tensor | Dual:
    """A convolution without its bias, which a later group adds."""
    plain = partial(convolution, conv)
    return linearly(x, plain, plain)


def mix_channels(x: Tensor | Dual, conv: nn.Conv2d) -> Tensor | Dual:
    """A 1x1 convolution with its bias, computed as a matrix product."""
    weight = conv.weight.flatten(1)

    def linear(x: Tensor, bias: Tensor | None = None) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        mixed = F.linear(last.reshape(-1, last.shape[-1]), weight, bias)
        return mixed.view(*last.shape[:3], -1).permute(0, 3, 1, 2)

    return linearly(x, partial(linear, bias=conv.bias), linear)


class Group:
    """A function of tensors (batch, ...) that acts on each sample separately, and its tangent.

    It also takes duals. ``tangent`` takes the function's arguments and their tangents, None for a
    number. ``bare`` replaces the function for values that need neither tangent nor graph. On a GPU,
    in dual mode, all three are compiled separately for each shape and number.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        tangent: Callable[..., Tensor],
        bare: Callable[..., Tensor] | None = None,
    ) -> None:
        self._plain = (function, tangent, bare or function)

    @cached_property
    def _compiled(self) -> tuple[Callable[..., Tensor], ...]:
        allow_recompilations(PROGRAMS)
        return tuple(torch.compile(f, dynamic=False) for f in self._plain)

    def __call__(self, *args: Any) -> Any:
        if not in_dual_mode():
            return self._plain[0](*args)
        function, tangent, bare = self._compiled if value_of(args[0]).is_cuda else self._plain
        duals = [a for a in args if isinstance(a, Dual)]
        if not (duals or torch.is_grad_enabled()):
            return bare(*args)
        value = function(*map(value_of, args))
        if not duals:
            return value
        with torch.no_grad():
            values, tangents = last(args, duals[0].n_constant)
            return Dual(value, tangent(values, tangents))
