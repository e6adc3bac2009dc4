"""The diffusion transformer (Peebles and Xie, arXiv 2212.09748), as in Mean Flows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

from vamf.flow.derivatives import apply_with_tangent
from vamf.flow.duals import Dual, in_dual_mode, value_of
from vamf.models.fast.attention import between_tokens, has_kernel
from vamf.models.fast.fused import Group
from vamf.models.fast.reference_ops import silu_slope
from vamf.models.layers import (
    ClassEmbedding,
    Conv2d,
    Linear,
    attend,
    check_classes,
    initialise,
    refuse_labels,
    sinusoid,
)
from vamf.models.recomputation import again_backward
from vamf.models.shared_pass import keep, kept
from vamf.typing import Label, Sample, Scalars, Time

Values = Sequence[Any]
Tangents = Sequence[Any]
FREQUENCIES = 256
"""Size of the sinusoidal embedding of a time."""
EPS = 1e-6
"""Added to the variance of a token."""
GATE_GAIN = 1e-5
"""Gates and the output start close to 0. Published ones start at 0, where no gradient passes them
at the first step."""


def positions(height: int, width: int, dim: int) -> Tensor:
    """[sin, cos] of the row and of the column of every patch, row by row, (patches, dim)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([sinusoid(at.flatten().double(), dim // 2) for at in (columns, rows)], 1)


def normalise(x: Tensor) -> Tensor:
    """Layer normalisation over the last axis, without parameters of its own."""
    return layer_norm(x, x.shape[-1:], eps=EPS)


class TimeEmbedding(nn.Module):
    """An embedding of each time, (batch, dim): two layers over its sinusoid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = Linear(FREQUENCIES, dim), Linear(dim, dim)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Time) -> Tensor:
        known = sinusoid(t, FREQUENCIES).to(self.first.weight.dtype)
        return self.second(silu(self.first(known)))


class Modulation(nn.Module):
    """Shifts, scales and gates from the condition (adaLN-Zero), each (batch, 1, dim)."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.layer = initialise(Linear(dim, count * dim), gain=GATE_GAIN)

    def forward(self, condition: Any) -> Any:
        return self.layer(_silu(condition))


def _part(modulation: Tensor, k: int, dim: int) -> Tensor:
    """The k-th vector of ``Modulation``, (batch, 1, dim)."""
    return modulation[:, None, k * dim : (k + 1) * dim]


def _silu_tangent(values: Values, tangents: Tangents) -> Tensor:
    return silu_slope(values[0]) * tangents[0]


_silu = Group(silu, _silu_tangent)


def _gelu_tangent(values: Values, tangents: Tangents) -> Tensor:
    x, c = values[0], math.sqrt(2 / math.pi)
    t = (c * (x + 0.044715 * x**3)).tanh()
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t.square()) * c * (1 + 3 * 0.044715 * x.square())
    return slope * tangents[0]


_gelu = Group(partial(gelu, approximate="tanh"), _gelu_tangent)


def _modulate(x: Tensor, modulation: Tensor, k: int) -> Tensor:
    """Normalises x, then shifts by the k-th vector and scales by the next."""
    shift, scale = (_part(modulation, j, x.shape[-1]) for j in (k, k + 1))
    return normalise(x) * (1 + scale) + shift


def _modulate_tangent(values: Values, tangents: Tangents) -> Tensor:
    (x, modulation, k), (dx, moved, _) = values, tangents
    scale = _part(modulation, k + 1, x.shape[-1])
    dshift, dscale = (_part(moved, j, x.shape[-1]) for j in (k, k + 1))
    wide = torch.promote_types(x.dtype, torch.float32)
    x, dx = x.to(wide), dx.to(wide)
    inverse = (x.var(-1, correction=0, keepdim=True) + EPS).rsqrt()
    n = (x - x.mean(-1, keepdim=True)) * inverse
    along = (n * dx).mean(-1, keepdim=True)
    dn = (dx - dx.mean(-1, keepdim=True) - n * along) * inverse
    return (dn * (1 + scale) + n * dscale + dshift).to(modulation.dtype)


_modulated = Group(_modulate, _modulate_tangent)


def _gate(x: Tensor, branch: Tensor, modulation: Tensor, k: int) -> Tensor:
    return x + _part(modulation, k, x.shape[-1]) * branch


def _gate_tangent(values: Values, tangents: Tangents) -> Tensor:
    (_, branch, modulation, k), (dx, dbranch, moved, _) = values, tangents
    gate, dgate = (_part(m, k, branch.shape[-1]) for m in (modulation, moved))
    return dx + gate * dbranch + dgate * branch


_gated = Group(_gate, _gate_tangent)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """q, k and v, each (batch, heads, tokens, dim / heads)."""
    b, n, dim = qkv.shape
    return qkv.reshape(b, n, 3, heads, dim // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)


def _tokens(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _attend_tangent(qkv: Sequence[Tensor], moved: Sequence[Tensor]) -> Tensor:
    """The tangent of ``attend`` for the tangents of q, k and v."""
    (q, k, v), (dq, dk, dv), scale = qkv, moved, 1 / math.sqrt(qkv[0].shape[-1])
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = (q @ (k * scale).mT).to(wide).softmax(-1)
    change = (dq @ (k * scale).mT + q @ (dk * scale).mT).to(wide)
    change = weights * (change - (weights * change).sum(-1, keepdim=True))
    return change.to(q.dtype) @ v + weights.to(q.dtype) @ dv


def _mix(qkv: Tensor, heads: int) -> Tensor:
    """Attention between the tokens of each sample, (batch, tokens, 3 dim) to (..., dim)."""
    return _tokens(attend(*_heads(qkv, heads)))


def _mix_tangent(values: Values, tangents: Tangents) -> Tensor:
    return _tokens(_attend_tangent(_heads(*values), _heads(tangents[0], values[1])))


def _mix_bare(qkv: Tensor, heads: int) -> Tensor:
    """``_mix`` with torch's fused kernel, which has no forward mode."""
    q, k, v = _heads(qkv, heads)
    return _tokens(scaled_dot_product_attention(q, k, v))


_mixed_plainly = Group(_mix, _mix_tangent, _mix_bare)


def _mixed(qkv: Any, heads: int) -> Any:
    """``_mix``, by a kernel that needs no table of all pairs of tokens if there is one."""
    needed = isinstance(qkv, Dual) or torch.is_grad_enabled()
    if in_dual_mode() and needed and has_kernel(value_of(qkv), heads):
        return between_tokens(qkv, heads)
    return _mixed_plainly(qkv, heads)


class TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each normalised, then modulated by the condition."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = initialise(Linear(dim, 3 * dim))
        self.proj = initialise(Linear(dim, dim))
        self.wide = initialise(Linear(dim, 4 * dim))
        self.narrow = initialise(Linear(4 * dim, dim))
        self.modulation = Modulation(dim, 6)

    def forward(self, x: Any, condition: Any) -> Any:
        modulation = self.modulation(condition)
        mixed = _mixed(self.qkv(_modulated(x, modulation, 0)), self.heads)
        x = _gated(x, self.proj(mixed), modulation, 2)
        h = _gelu(self.wide(_modulated(x, modulation, 3)))
        return _gated(x, self.narrow(h), modulation, 5)


class Output(nn.Module):
    """The last layer: modulates, then maps each token to the pixels of its patch."""

    def __init__(self, dim: int, pixels: int) -> None:
        super().__init__()
        self.modulation = Modulation(dim, 2)
        self.layer = initialise(Linear(dim, pixels), gain=GATE_GAIN)

    def forward(self, x: Any, condition: Any) -> Any:
        return self.layer(_modulated(x, self.modulation(condition), 0))


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion transformer; the defaults are DiT-B/4 on latents of ImageNet."""

    patch: int = 4
    """Height and width of a patch, in pixels."""
    width: int = 768
    """Size of a token, a multiple of 4 and of `heads`."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """Attention heads."""
    velocity_head: bool = False
    """Add a second output layer, for the velocity at t: the proxy `head`."""
    classes: int = 0
    """Number of classes of the labels; 0: unconditional."""
    guided: bool = False
    """Whether it takes the guidance scale as input; sampling then chooses the scale."""
    guided_interval: bool = False
    """Whether it takes the interval of guided times as input, too."""

    def __post_init__(self) -> None:
        if min(self.patch, self.depth, self.heads) < 1:
            raise ValueError(
                "patch, depth and heads must be positive; "
                f"got {self.patch}, {self.depth} and {self.heads}"
            )
        if self.width < 4 or self.width % 4 or self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of 4 and of heads; got {self.width} and {self.heads}"
            )
        check_classes(self.classes, self.guided, self.guided_interval)

    def build(self, shape: tuple[int, ...]) -> "DiT":
        """The network for images or latents of ``shape`` (channels, height, width)."""
        if len(shape) != 3 or shape[1] % self.patch or shape[2] % self.patch:
            raise ValueError(
                f"this transformer takes images (channels, height, width) with height and width "
                f"divisible by {self.patch}; got samples of shape {shape}"
            )
        return DiT(self, shape)


class DiT(nn.Module):
    """u(z, r, t) on images (batch, channels, height, width), with t and t - r embedded.

    With classes, embeddings of the labels ``y`` are added to those of the times; None is no class.
    If guided, so is an embedding of ``kappa`` = 1 - 1 / scale, None is 0, and perhaps those of the
    times of ``interval`` (batch, 2); None is [0, 1].
    """

    positions: Tensor

    def __init__(self, config: DiTConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape, dim, p = config, shape, config.width, config.patch
        self.patches = initialise(Conv2d(shape[0], dim, p, stride=p), per_patch=True)
        grid = positions(shape[1] // p, shape[2] // p, dim)
        self.register_buffer("positions", grid.float(), persistent=False)
        self.time, self.gap = TimeEmbedding(dim), TimeEmbedding(dim)
        inputs = config.guided, config.guided_interval
        self.labels = ClassEmbedding(config.classes, dim, *inputs) if config.classes else None
        if self.labels is not None:
            nn.init.normal_(self.labels.table.weight, std=0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, config.heads) for _ in range(config.depth)
        )
        self.out = Output(dim, shape[0] * p * p)
        self.velocity_head = Output(dim, shape[0] * p * p) if config.velocity_head else None

    def forward(
        self,
        z: Sample,
        r: Time,
        t: Time,
        y: Label | None = None,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
    ) -> Sample:
        pixels = partial(self._pixels, dtype=value_of(z).dtype)
        hidden = self._hidden(z, r, t, y, kappa, interval)
        keep(self, r, t, *hidden)
        return apply_with_tangent(pixels, self.out(*hidden))

    def velocity(self, z: Sample, t: Time, *known: Tensor | None, r: Time | None = None) -> Sample:
        """v(z, t) by the velocity head, of blocks at ``r``, or at t; labels as ``forward``'s."""
        assert self.velocity_head is not None
        times = t if r is None else r, t
        hidden = kept(self, *times) or self._hidden(z, *times, *known)
        return self._pixels(self.velocity_head(*hidden), z.dtype)

    def _hidden(self, z: Sample, r: Time, t: Time, *known: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens, (batch, patches, width), and the condition, (batch, width)."""
        condition = apply_with_tangent(self._condition, t, r, *known)
        dtype = self.patches.weight.dtype
        x = apply_with_tangent(
            self._placed, self.patches(apply_with_tangent(lambda v: v.to(dtype), z))
        )
        for block in self.blocks:
            x = again_backward(block, TransformerBlock.__call__, x, condition)
        return x, condition

    def _condition(
        self,
        t: Time,
        r: Time,
        y: Label | None = None,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
    ) -> Tensor:
        condition = self.time(t) + self.gap(t - r)
        if self.labels is not None:
            return condition + self.labels(y, len(t), kappa, interval)
        refuse_labels(y)
        return condition

    def _placed(self, patches: Tensor) -> Tensor:
        """The patches as tokens, with positions added."""
        return patches.flatten(2).transpose(1, 2) + self.positions.to(patches.dtype)

    def _pixels(self, tokens: Tensor, dtype: torch.dtype) -> Sample:
        (channels, height, width), p = self.shape, self.config.patch
        grid = tokens.reshape(len(tokens), height // p, width // p, p, p, channels)
        images = grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), channels, height, width)
        return images.to(dtype)
