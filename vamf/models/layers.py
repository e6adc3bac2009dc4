"""Building blocks that can be differentiated in forward mode, eagerly and compiled.

torch's GroupNorm breaks forward mode under ``torch.compile``, and its fused attention kernels have
none. Where a fused operation works eagerly it is used there; compiled code gets plain operations,
which the compiler fuses itself. Both compute the same with the same parameters.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vamf.flow.derivatives import affine, with_rule
from vamf.typing import Label, Time

_Affine = TypeVar("_Affine", nn.Linear, nn.Conv2d)


def sinusoid(t: Time, dim: int, *, endpoint: bool = False) -> Tensor:
    """[sin, cos] of t at dim / 2 frequencies falling from 1 to 1 / 10000, (batch, dim).

    ``endpoint`` includes the last frequency, as in Song et al. (arXiv 2011.13456). Computed in
    the precision of ``t``.
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=t.dtype) / (half - endpoint)
    phase = t[:, None] * torch.pow(1e-4, exponents)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class Linear(nn.Linear):
    """torch's, cheaper in forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, super().forward, partial(F.linear, weight=self.weight))


class Conv2d(nn.Conv2d):
    """torch's, cheaper in forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        linear = partial(self._conv_forward, weight=self.weight, bias=None)
        return affine(x, self.weight, super().forward, linear)


class GroupNorm(nn.Module):
    """Group normalisation with affine parameters, statistics in at least float32."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        groups = min(32, channels // 4)
        self.groups, self.eps = math.gcd(groups, channels), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """The same in plain operations.

        A scale and a shift of each channel, which fuse with what follows; its statistics are taken
        over pixels first, channel by channel, which any memory format is fast in.
        """
        return with_rule(x, (self.weight, self.bias), self._value, self._value_and_tangent)

    def _value(self, x: Tensor) -> Tensor:
        wide = self._wide(x)
        _, centre, scale = self._statistics(wide)
        return self._apply_to(wide, centre, scale).to(x.dtype)

    def _value_and_tangent(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """The tangent of n = (x - c) s is s (dx - dc - n s q), q the mean of (x - c) dx."""
        wide, d = self._wide(x), self._wide(tangent)
        pivot, centre, scale = self._statistics(wide)
        mean, product = d.mean((2, 3)), ((wide - _at_pixels(pivot)) * d).mean((2, 3))
        moved = self._over_group(mean)
        q = self._over_group(product - (centre - pivot) * mean)
        factor = scale * self.weight
        slope = factor * scale.square() * q
        shift = slope * centre - factor * moved
        out = d * _at_pixels(factor) - wide * _at_pixels(slope) + _at_pixels(shift)
        return self._apply_to(wide, centre, scale).to(x.dtype), out.to(tangent.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A value near each channel's mean, and its group's mean and 1 / deviation, (batch, C)."""
        pivot = x[:, :, 0, 0].detach()  # lest the difference of squares below cancel
        offsets = x - _at_pixels(pivot)
        offset, square = offsets.mean((2, 3)), offsets.square().mean((2, 3))
        centre = self._over_group(pivot + offset)
        apart = pivot + offset - centre
        variance = self._over_group(square - offset.square() + apart.square())
        return pivot, centre, (variance + self.eps).rsqrt()

    def _over_group(self, s: Tensor) -> Tensor:
        """The mean over the channels of a group, at each of them, (batch, C)."""
        grouped = s.unflatten(1, (self.groups, -1))
        return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)

    def _apply_to(self, x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
        factor = scale * self.weight
        return x * _at_pixels(factor) + _at_pixels(self.bias - centre * factor)


def _at_pixels(s: Tensor) -> Tensor:
    return s[:, :, None, None]


def channels_last(x: Tensor) -> Tensor:
    """The same images, in compiled code in the memory format that its convolutions are fast in."""
    if torch.compiler.is_compiling():
        return x.contiguous(memory_format=torch.channels_last)
    return x


def _taps(x: Tensor, gain: float) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    return (gain * torch.outer(taps, taps)).expand(x.shape[1], 1, 4, 4)


def _linear_map(x: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
    return affine(x, None, apply, apply)


def downsample(x: Tensor) -> Tensor:
    """Halves height and width (both even) with the FIR filter [1, 3, 3, 1], zero-padded."""
    if torch.compiler.is_compiling():
        return _linear_map(x, lambda y: _halve(_halve(y, 2), 3))
    taps = _taps(x, gain=1)
    return _linear_map(x, lambda y: F.conv2d(y, taps, stride=2, padding=1, groups=y.shape[1]))


def upsample(x: Tensor) -> Tensor:
    """Doubles height and width with the FIR filter [1, 3, 3, 1], zero-padded."""
    if torch.compiler.is_compiling():
        return _linear_map(x, lambda y: _double(_double(y, 2), 3))
    taps = _taps(x, gain=4)
    return _linear_map(
        x, lambda y: F.conv_transpose2d(y, taps, stride=2, padding=1, groups=y.shape[1])
    )


def _padded(x: Tensor, dim: int) -> Tensor:
    return F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))


def _halve(x: Tensor, dim: int) -> Tensor:
    """The filter along one axis, of which every other value is kept: sums, which fuse."""
    padded, size = _padded(x, dim), x.shape[dim]
    every_other = (padded.narrow(dim, k, size - 1) for k in range(4))
    a, b, c, d = (part.movedim(dim, 0)[::2].movedim(0, dim) for part in every_other)
    return (a + d) / 8 + (b + c) * (3 / 8)


def _double(x: Tensor, dim: int) -> Tensor:
    padded, size = _padded(x, dim), x.shape[dim]
    before, here, after = (padded.narrow(dim, k, size) for k in range(3))
    both = torch.stack([before + 3 * here, 3 * here + after], dim + 1)
    return both.flatten(dim, dim + 1) / 4


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v in plain operations, all (batch, heads, tokens, d).

    The softmax is taken in at least float32.
    """
    logits = torch.einsum("bhqc,bhkc->bhqk", q, k / math.sqrt(q.shape[-1]))
    weights = logits.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(q.dtype)
    return torch.einsum("bhqk,bhkc->bhqc", weights, v)


class SelfAttention(nn.Module):
    """Residual self-attention over pixels."""

    def __init__(self, channels: int, heads: int, out_gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = initialise(Conv2d(channels, 3 * channels, 1), gain=math.sqrt(0.2))
        self.proj = initialise(Conv2d(channels, channels, 1), gain=out_gain)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, -1).unbind(1)
        pixels = attend(*(part.transpose(2, 3) for part in (q, k, v)))
        return x + self.proj(pixels.transpose(2, 3).reshape(b, c, h, w))


class ClassEmbedding(nn.Module):
    """A learnt vector for each class, and one more for none of them (arXiv 2207.12598)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, y: Label | None, size: int) -> Tensor:
        """(size, dim) for class indices (size,); index ``classes``, or None, is no class."""
        if y is None:
            return self.table.weight[-1:].expand(size, -1)
        return self.table(y)


def refuse_labels(y: Label | None) -> None:
    """Raises ValueError if a network without classes is given some."""
    if y is not None:
        raise ValueError("this network takes no labels; its config has classes = 0")


def initialise(module: _Affine, gain: float = 1.0) -> _Affine:
    """Glorot-uniform weights times ``gain`` and zero biases; returns the module."""
    with torch.no_grad():
        nn.init.xavier_uniform_(module.weight).mul_(gain)
        if module.bias is not None:
            module.bias.zero_()
    return module
