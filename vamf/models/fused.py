"""Groups of a network's operations that become two or three kernels each on a GPU.

What lies between two convolutions is bound by memory: each group reads its input twice and writes
its output once, forwards, with the tangent, and backwards. They are written twice: plainly, which
is how they are computed on a CPU or in float64, and as the kernels of ``vamf.models.kernels``.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vamf.flow.duals import Dual, are_carried, last, linearly, value_of

LAST = torch.channels_last
HALF = math.sqrt(0.5)
"""Of two summands of variance 1, what makes the variance of their sum 1 again."""


class Normalisation(NamedTuple):
    """What is constant in a group normalisation and what follows it."""

    groups: int
    eps: float
    activate: bool
    """Whether SiLU follows."""
    dropout: float
    """Then, the probability that a value is set to 0."""


def _at(s: Tensor) -> Tensor:
    return s[:, :, None, None]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over_group(s: Tensor, groups: int) -> Tensor:
    """The mean over the channels of a group, at each of them, (batch, channels)."""
    grouped = s.unflatten(1, (groups, -1))
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)


def silu_slope(h: Tensor) -> Tensor:
    """The derivative of SiLU."""
    p = h.sigmoid()
    return p * (1 + h * (1 - p))


def _by(x: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    return x if kept is None else x * kept / (1 - dropout)


def normalise_plainly(
    x: Tensor,
    d: Tensor | None,
    shift: Tensor | None,
    offset: Tensor | None,
    moving: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    kept: Tensor | None,
    *,
    groups: int,
    eps: float,
    activate: bool,
    dropout: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The value y, its tangent if x has the tangent ``d``, and what ``backward`` needs.

    The normalised n = (v - c) / s of v = x + shift + offset has the tangent
    (dv - mean dv - n mean(n dv)) / s, with means over the group. Everything is written as x times
    a factor of the channel, plus another.
    """
    wide = _wide(x)
    moved = 0 if shift is None or offset is None else _wide(shift) + offset
    pivot = wide[:, :, 0, 0]  # a value near the mean, lest the difference of squares cancel
    apart = wide - _at(pivot)
    offset, square = apart.mean((2, 3)), apart.square().mean((2, 3))
    mean = pivot + offset + moved
    centre = _over_group(mean, groups)
    gap = mean - centre
    inverse = (_over_group(square - offset.square() + gap.square(), groups) + eps).rsqrt()
    factor, origin = inverse * weight, centre - moved
    constant = bias - origin * factor
    h = wide * _at(factor) + _at(constant)
    y = _by(F.silu(h) if activate else h, kept, dropout).to(x.dtype)
    coefficients = torch.stack([factor, constant, origin, gap, inverse])
    if d is None:
        return y, None, coefficients
    still, tangent = len(x) - len(d), _wide(d)
    factor, _, origin, gap, inverse = (part[still:] for part in coefficients)
    along = tangent.mean((2, 3))
    product = (apart[still:] * tangent).mean((2, 3)) - (origin - pivot[still:]) * along
    own = 0 if moving is None else _wide(moving)
    product, along = product + gap * own, along + own
    slope = factor * inverse.square() * _over_group(product, groups)
    rest = origin * slope + (own - _over_group(along, groups)) * factor
    dy = tangent * _at(factor) - wide[still:] * _at(slope) + _at(rest)
    if activate:
        dy = dy * silu_slope(h[still:])
    dy = _by(dy, None if kept is None else kept[still:], dropout)
    return y, dy.to(x.dtype), coefficients


def normalise_backward_plainly(
    g: Tensor,
    beside: tuple[Tensor, ...],
    x: Tensor,
    kept: Tensor | None,
    coefficients: Tensor,
    weight: Tensor,
    *,
    groups: int,
    eps: float,
    activate: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, with those ``beside``, of shift, offset, weight and bias, of their type."""
    factor, constant, origin, gap, inverse = coefficients
    wide, pixels = _wide(x), x.shape[2] * x.shape[3]
    back = _by(_wide(g), kept, dropout)
    if activate:
        back = back * silu_slope(wide * _at(factor) + _at(constant))
    alone = back.sum((2, 3))
    product = (back * (wide - _at(origin))).sum((2, 3)) * inverse
    across = inverse * _over_group(weight * alone, groups) / pixels
    along = inverse.square() * _over_group(weight * product, groups) / pixels
    gx = back * _at(factor) - wide * _at(along) + _at(origin * along - across)
    for other in beside:
        gx = gx + other
    gshift = factor * alone - pixels * (gap * along + across)
    gs, go, gw, gb = (
        a.to(weight.dtype) for a in (gshift, gshift.sum(0), product.sum(0), alone.sum(0))
    )
    return gx.to(x.dtype), gs, go, gw, gb


def halfway_plainly(x: Tensor, y: Tensor, bias: Tensor | None, half: float) -> Tensor:
    """(x + y + bias) half."""
    total = _wide(x) + y if bias is None else _wide(x) + y + _at(bias[None])
    return (total * half).to(x.dtype)


def halfway_backward_plainly(g: Tensor, bias: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """half g, and its sum over images and pixels."""
    back = _wide(g) * half
    return back.to(g.dtype), back.sum((0, 2, 3)).to(bias.dtype)


def _filter(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    return torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)


def fir_plainly(x: Tensor, gain: float, *, up: bool) -> Tensor:
    """The FIR filter [1, 3, 3, 1] / 8, zero-padded, of images that are doubled or halved."""
    taps, c = gain * _filter(x), x.shape[1]
    if up:
        return F.conv_transpose2d(x, 4 * taps, stride=2, padding=1, groups=c)
    return F.conv2d(x, taps, stride=2, padding=1, groups=c)


def _written(x: Tensor) -> Any:
    """Where the groups are written as this tensor needs them."""
    if x.is_cuda and x.dtype != torch.float64 and find_spec("triton") is not None:
        from vamf.models import kernels

        return kernels
    return _Plainly


class _Plainly:
    normalise = staticmethod(normalise_plainly)
    normalise_backward = staticmethod(normalise_backward_plainly)
    halfway = staticmethod(halfway_plainly)
    halfway_backward = staticmethod(halfway_backward_plainly)
    fir = staticmethod(fir_plainly)


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
        n: Normalisation,
        copies: int,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        kept = None
        if n.dropout:
            kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - n.dropout)
        written = _written(x).normalise
        y, dy, coefficients = written(
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
        written = _written(x).normalise_backward
        gx, gs, go, *rest = written(g, beside, x, kept, coefficients, weight, **ctx.n._asdict())
        shifts = (gs, go) if ctx.shifted else (None, None)
        return gx, *shifts, *rest, None, None, None, None


def normalise(
    x: Tensor | Dual,
    shift: Tensor | Dual | None,
    offset: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    n: Normalisation,
    copies: int = 0,
) -> tuple[Tensor | Dual, ...]:
    """dropout(silu(group_norm(x + shift + offset))), x (batch, C, H, W), shift (batch, C).

    ``offset`` (C,) goes with the shift. Statistics are taken in at least float32. A shift with a
    tangent needs an x with one. Behind it come ``copies`` of x for others to use: the gradients of
    all are added in one go.
    """
    d, moving = _tangent(x), _tangent(shift)
    value = None if shift is None else value_of(shift)
    out = _Normalise.apply(value_of(x), value, offset, weight, bias, d, moving, n, copies)
    if d is None:
        return out[:-1]
    return Dual(out[0], out[-1]), *(Dual(copy, d) for copy in out[1:-1])


def _tangent(x: Tensor | Dual | None) -> Tensor | None:
    return x.tangent if isinstance(x, Dual) else None


class _Residual(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return _written(x).halfway(x, y, bias, HALF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        back, gb = _written(g).halfway_backward(g, *ctx.saved_tensors, HALF)
        return back, back, gb


def residual(x: Tensor | Dual, y: Tensor | Dual, bias: Tensor) -> Tensor | Dual:
    """(x + y + bias) sqrt(1/2), ``bias`` (C,); both with a tangent or neither."""
    value = _Residual.apply(value_of(x), value_of(y), bias)
    if isinstance(x, Dual) and isinstance(y, Dual):
        return Dual(value, _written(x.tangent).halfway(x.tangent, y.tangent, None, HALF))
    return value


class _Resample(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: bool) -> Tensor:
        ctx.up = up
        return _written(x).fir(x, 1.0, up=up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        # One is the other's adjoint, but for the gain of 4 that keeps the mean.
        return _written(g).fir(g, 4.0 if ctx.up else 0.25, up=not ctx.up), None


def resample(x: Tensor | Dual, *, up: bool) -> Tensor | Dual:
    """Doubles or halves height and width (even) with the FIR filter [1, 3, 3, 1], zero-padded."""
    apply: Callable[[Tensor], Tensor] = partial(_resample, up)
    return linearly(x, apply, apply)


def _resample(up: bool, x: Tensor) -> Tensor:
    return _Resample.apply(x, up)


def convolve(x: Tensor | Dual, conv: nn.Conv2d) -> Tensor | Dual:
    """A convolution whose bias is left to what follows."""
    plain = partial(conv._conv_forward, weight=conv.weight, bias=None)
    return linearly(x, plain, plain)


class Group:
    """A function of tensors (batch, ...) that keeps samples apart, and its tangent, also of duals.

    ``tangent`` takes the function's arguments and, for each, its own tangent or, of a number, None.
    Where duals are carried on a GPU, both are compiled.
    """

    def __init__(self, function: Callable[..., Tensor], tangent: Callable[..., Tensor]) -> None:
        self._function, self._tangent = function, tangent
        self._compiled = (
            torch.compile(function, fullgraph=True, dynamic=False),
            torch.compile(tangent, fullgraph=True, dynamic=False),
        )

    def __call__(self, *args: Any) -> Any:
        if not are_carried():
            return self._function(*args)
        on_gpu = value_of(args[0]).is_cuda
        function, tangent = self._compiled if on_gpu else (self._function, self._tangent)
        value = function(*map(value_of, args))
        duals = [a for a in args if isinstance(a, Dual)]
        if not duals:
            return value
        with torch.no_grad():
            values, tangents = last(args, duals[0].still)
            return Dual(value, tangent(values, tangents))
