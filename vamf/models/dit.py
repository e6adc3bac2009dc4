"""The diffusion transformer (Peebles and Xie, arXiv 2212.09748), as in Mean Flows."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from vamf.models.layers import (
    ClassEmbedding,
    Conv2d,
    Linear,
    attend,
    initialise,
    refuse_labels,
    sinusoid,
)
from vamf.typing import Label, Sample, Time

FREQUENCIES = 256
"""Size of the sinusoid of a time."""
GATE_GAIN = 1e-5
"""Gates and the output start at practically 0: the published ones at 0, where no gradient passes
them at the first step."""


def positions(height: int, width: int, dim: int) -> Tensor:
    """[sin, cos] of the row and of the column of every patch, row by row, (patches, dim)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([sinusoid(at.flatten().double(), dim // 2) for at in (columns, rows)], 1)


def normalise(x: Tensor) -> Tensor:
    """Layer normalisation over the last axis, without parameters of its own."""
    return layer_norm(x, x.shape[-1:], eps=1e-6)


class TimeEmbedding(nn.Module):
    """A vector for each time, (batch, dim): two layers over its sinusoid."""

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

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.layer(silu(condition))[:, None].chunk(self.count, dim=-1)


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

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate * self._attention(normalise(x) * (1 + scale) + shift)
        h = self.wide(normalise(x) * (1 + scale2) + shift2)
        return x + gate2 * self.narrow(gelu(h, approximate="tanh"))

    def _attention(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        parts = self.qkv(x).reshape(b, n, 3, self.heads, dim // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(b, n, dim))


class Output(nn.Module):
    """The last layer: modulated, then from each token to the pixels of its patch."""

    def __init__(self, dim: int, pixels: int) -> None:
        super().__init__()
        self.modulation = Modulation(dim, 2)
        self.layer = initialise(Linear(dim, pixels), gain=GATE_GAIN)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition)
        return self.layer(normalise(x) * (1 + scale) + shift)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A diffusion transformer; the defaults are DiT-B/4 on latents of ImageNet."""

    patch: int = 4
    """Height and width of a patch, in pixels."""
    width: int = 768
    """Numbers in a token, a multiple of 4 and of `heads`."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """Attention heads."""
    velocity_head: bool = False
    """A second output layer, for the velocity at t: the proxy `head`."""
    classes: int = 0
    """Classes of the labels that it is conditioned on; 0 makes it unconditional."""

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
        if self.classes < 0:
            raise ValueError(f"classes must be at least 0; got {self.classes}")

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

    With classes the vectors of the labels ``y`` are added to those of the times; None is no class.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape, dim, p = config, shape, config.width, config.patch
        self.patches = initialise(Conv2d(shape[0], dim, p, stride=p))
        grid = positions(shape[1] // p, shape[2] // p, dim)
        self.register_buffer("positions", grid.float(), persistent=False)
        self.time, self.gap = TimeEmbedding(dim), TimeEmbedding(dim)
        self.labels = ClassEmbedding(config.classes, dim) if config.classes else None
        if self.labels is not None:
            nn.init.normal_(self.labels.table.weight, std=0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, config.heads) for _ in range(config.depth)
        )
        self.out = Output(dim, shape[0] * p * p)
        self.velocity_head = Output(dim, shape[0] * p * p) if config.velocity_head else None

    def forward(self, z: Sample, r: Time, t: Time, y: Label | None = None) -> Sample:
        return self._pixels(self.out(*self._hidden(z, r, t, y))).to(z.dtype)

    def velocity(self, z: Sample, t: Time) -> Sample:
        """v(z, t) by the velocity head."""
        assert self.velocity_head is not None
        return self._pixels(self.velocity_head(*self._hidden(z, t, t))).to(z.dtype)

    def _hidden(self, z: Sample, r: Time, t: Time, y: Label | None = None) -> tuple[Tensor, Tensor]:
        """The tokens, (batch, patches, width), and the condition, (batch, width)."""
        condition = self.time(t) + self.gap(t - r)
        if self.labels is not None:
            condition = condition + self.labels(y, len(z))
        else:
            refuse_labels(y)
        x = self.patches(z.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        x = x + self.positions.to(x.dtype)
        for block in self.blocks:
            x = block(x, condition)
        return x, condition

    def _pixels(self, tokens: Tensor) -> Sample:
        (channels, height, width), p = self.shape, self.config.patch
        grid = tokens.reshape(len(tokens), height // p, width // p, p, p, channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), channels, height, width)
