"""Groups of a network's operations that become two or three kernels each on a GPU.

What lies between two convolutions is bound by memory: each group reads its input twice and writes
its output once, forwards, with the tangent, and backwards. They are written twice: in
``vamf.models.plain``, for the CPU and float64, and as Triton kernels in ``vamf.models.kernels``.
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

from vamf.flow.duals import Dual, are_carried, last, linearly, value_of
from vamf.models import plain
from vamf.models.convolutions import convolution
from vamf.models.rooms import Place, Room

TRITON = find_spec("triton") is not None
PROGRAMS = 128
"""Shapes and numbers for which a group is compiled; by default torch has eight, and one process
may train several experiments. Others are computed without being compiled."""
HALF = math.sqrt(0.5)
"""Of two summands of variance 1, what makes the variance of their sum 1 again."""


def require_compiler() -> None:
    """Raises ValueError unless kernels can be made for a GPU: Triton, where it is, compiles C."""
    if not TRITON:
        return
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    schemes = (sysconfig.get_default_scheme(), "posix_prefix")  # Debian's own is not Triton's
    headers = [Path(sysconfig.get_paths(scheme)["include"]) / "Python.h" for scheme in schemes]
    header = next((path for path in headers if path.exists()), None)
    if not (compiler and header):
        raise ValueError(
            "compiled steps on a GPU need a C compiler (gcc, clang, or CC's) and Python's headers; "
            f"got {compiler or 'no compiler'} and {header or f'no {headers[0]}'}; "
            "install them (gcc, python3-dev), or set compute.compile to false"
        )


class Normalisation(NamedTuple):
    """What is constant in a group normalisation and what follows it."""

    groups: int
    eps: float
    activate: bool
    """Whether SiLU follows."""
    dropout: float
    """Then, the probability that a value was set to 0."""


def written(x: Tensor) -> Any:
    """The module in which the groups are written as this tensor needs them."""
    if TRITON and x.is_cuda and x.dtype != torch.float64:
        from vamf.models import kernels

        return kernels
    return plain


class _Normalise(Function):
    """Returns y, x itself as often as asked, whose gradients are added at once, and dy."""

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
        y, dy, coefficients = written(x).normalise(
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
        gx, gs, go, *rest = written(x).normalise_backward(
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

    ``offset`` (C,) goes with the shift. Statistics are taken in at least float32. A shift with a
    tangent needs an x with one. Behind it come ``copies`` of x for others to use: the gradients of
    all are added in one go. ``kept`` tells which numbers dropout leaves, as booleans like x.
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
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor, place: Place | None) -> Tensor:
        ctx.save_for_backward(bias)
        return _halfway(x, y, bias, place, "value")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        back, gb = written(g).halfway_backward(g, *ctx.saved_tensors, HALF)
        return back, back, gb, None


def _halfway(x: Tensor, y: Tensor, bias: Tensor | None, place: Place | None, what: str) -> Tensor:
    to = None if place is None else place.room.place(place.part, x, what)
    return written(x).halfway(x, y, bias, HALF, to)


def residual(
    x: Tensor | Dual, y: Tensor | Dual, bias: Tensor, place: Place | None = None
) -> Tensor | Dual:
    """(x + y + bias) sqrt(1/2), ``bias`` (C,); both with a tangent or neither."""
    value = _Residual.apply(value_of(x), value_of(y), bias, place)
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(value, _halfway(x.tangent, y.tangent, None, place, "tangent"))
    return value


class _Joined(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, room: Room) -> Tensor:
        ctx.channels = x.shape[1], y.shape[1]
        return room.join((x, y), "value")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        return *g.split(ctx.channels, 1), None


def joined(x: Tensor | Dual, y: Tensor | Dual, room: Room) -> Tensor | Dual:
    """Two images behind one another along the channels; both with a tangent or neither.

    ``room`` is where one or both of them may have been written.
    """
    value = _Joined.apply(value_of(x), value_of(y), room)
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(value, room.join((x.tangent, y.tangent), "tangent"))
    return value


class _Resample(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool) -> Tensor:
        ctx.up = up
        return written(x).fir(x, 1.0, up=up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        # One is the other's adjoint, but for the gain of 4 that keeps the mean.
        return written(g).fir(g, 4.0 if ctx.up else 0.25, up=not ctx.up), None


def resample(x: Tensor | Dual, *, up: bool) -> Tensor | Dual:
    """Doubles or halves height and width (even) with the FIR filter [1, 3, 3, 1], zero-padded."""
    apply: Callable[[Tensor], Tensor] = partial(_resample, up)
    return linearly(x, apply, apply)


def _resample(up: bool, x: Tensor) -> Tensor:
    return _Resample.apply(x, up)


def convolve(x: Tensor | Dual, conv: nn.Conv2d) -> Tensor | Dual:
    """A convolution whose bias is left to what follows."""
    plain = partial(convolution, conv)
    return linearly(x, plain, plain)


def mix_channels(x: Tensor | Dual, conv: nn.Conv2d) -> Tensor | Dual:
    """A convolution of 1x1 with its bias, as the product of matrices that it is."""
    weight = conv.weight.flatten(1)

    def linear(x: Tensor, bias: Tensor | None = None) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        mixed = F.linear(last.reshape(-1, last.shape[-1]), weight, bias)
        return mixed.view(*last.shape[:3], -1).permute(0, 3, 1, 2)

    return linearly(x, partial(linear, bias=conv.bias), linear)


class Group:
    """A function of tensors (batch, ...) that keeps samples apart, and its tangent, also of duals.

    ``tangent`` takes the function's arguments and, for each, its own tangent or, of a number, None.
    ``bare`` takes the function's place for values that need neither tangent nor graph. Where duals
    are carried on a GPU, all are compiled, for each shape and number on its own.
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
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, PROGRAMS)
        return tuple(torch.compile(f, dynamic=False) for f in self._plain)

    def __call__(self, *args: Any) -> Any:
        if not are_carried():
            return self._plain[0](*args)
        function, tangent, bare = self._compiled if value_of(args[0]).is_cuda else self._plain
        duals = [a for a in args if isinstance(a, Dual)]
        if not (duals or torch.is_grad_enabled()):
            return bare(*args)
        value = function(*map(value_of, args))
        if not duals:
            return value
        with torch.no_grad():
            values, tangents = last(args, duals[0].still)
            return Dual(value, tangent(values, tangents))
