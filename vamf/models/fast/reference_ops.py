"""The groups of ``vamf.models.fast.fused`` in plain operations, with derivatives by hand."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def _at(s: Tensor) -> Tensor:
    return s[:, :, None, None]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _over_group(s: Tensor, groups: int) -> Tensor:
    """The mean over the channels of a group, repeated for each of them, (batch, channels)."""
    grouped = s.unflatten(1, (groups, -1))
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)


def silu_slope(h: Tensor) -> Tensor:
    """The derivative of SiLU."""
    p = h.sigmoid()
    return p * (1 + h * (1 - p))


def _by(x: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    return x if kept is None else x * kept / (1 - dropout)


def normalise(
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
    """The value y, its tangent if x has the tangent ``d``, and coefficients for the backward pass.

    The normalised n = (v - c) / s of v = x + shift + offset has the tangent
    (dv - mean dv - n mean(n dv)) / s, with means over the group. Value and tangent are computed as
    x times a factor of each channel, plus a constant of each channel.
    """
    wide = _wide(x)
    moved = 0 if shift is None or offset is None else _wide(shift) + offset
    pivot = wide[:, :, 0, 0]  # near the mean: the difference of squares must not cancel
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
    n_constant, tangent = len(x) - len(d), _wide(d)
    factor, _, origin, gap, inverse = (part[n_constant:] for part in coefficients)
    along = tangent.mean((2, 3))
    product = (apart[n_constant:] * tangent).mean((2, 3)) - (origin - pivot[n_constant:]) * along
    own = 0 if moving is None else _wide(moving)
    product, along = product + gap * own, along + own
    slope = factor * inverse.square() * _over_group(product, groups)
    rest = origin * slope + (own - _over_group(along, groups)) * factor
    dy = tangent * _at(factor) - wide[n_constant:] * _at(slope) + _at(rest)
    if activate:
        dy = dy * silu_slope(h[n_constant:])
    dy = _by(dy, None if kept is None else kept[n_constant:], dropout)
    return y, dy.to(x.dtype), coefficients


def normalise_backward(
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
    """Gradients of x (plus those ``beside``), shift, offset, weight and bias, in their types."""
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


def scaled_sum(
    x: Tensor, y: Tensor, bias: Tensor | None, half: float, to: Tensor | None = None
) -> Tensor:
    """(x + y + bias) half, written ``to`` another image."""
    total = (_wide(x) + y if bias is None else _wide(x) + y + _at(bias[None])) * half
    return total.to(x.dtype) if to is None else to.copy_(total)


def scaled_sum_backward(g: Tensor, bias: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """half g, and its sum over images and pixels."""
    back = _wide(g) * half
    return back.to(g.dtype), back.sum((0, 2, 3)).to(bias.dtype)


@cache
def _filter(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(4, 4). Made once: its numbers come from the host, which a CUDA graph cannot wait for."""
    with torch.inference_mode(False), torch.no_grad():
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype) / 8
        return torch.outer(taps, taps)


def fir(x: Tensor, gain: float, *, up: bool) -> Tensor:
    """The FIR filter [1, 3, 3, 1] / 8, zero-padded, of images that are doubled or halved."""
    c = x.shape[1]
    taps = gain * _filter(x.device, x.dtype).expand(c, 1, 4, 4)
    if up:
        return F.conv_transpose2d(x, 4 * taps, stride=2, padding=1, groups=c)
    return F.conv2d(x, taps, stride=2, padding=1, groups=c)


def softmax(x: Tensor, scale: float) -> Tensor:
    """softmax(scale x) over the last axis."""
    return (_wide(x) * scale).softmax(-1).to(x.dtype)


def softmax_tangent(weights: Tensor, d: Tensor, scale: float) -> Tensor:
    """The tangent of ``softmax`` along ``d``, from its result ``weights``; also its gradient."""
    weights, wide = _wide(weights), _wide(d)
    return (weights * (wide - (weights * wide).sum(-1, keepdim=True)) * scale).to(d.dtype)
