"""The DDPM++ U-Net (Song et al., arXiv 2011.13456; as in Karras et al., arXiv 2206.00364)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vamf.flow.derivatives import apply_with_tangent
from vamf.flow.duals import in_dual_mode, value_of
from vamf.models.fast import unet as fast
from vamf.models.layers import (
    ClassEmbedding,
    Conv2d,
    Dropout,
    GroupNorm,
    Linear,
    SelfAttention,
    check_classes,
    downsample,
    initialise,
    refuse_labels,
    scaled,
    silu,
    sinusoid,
    upsample,
    with_rows,
)
from vamf.models.recomputation import again_backward
from vamf.models.shared_pass import keep, kept
from vamf.typing import Label, Sample, Scalars, Time

OUT_GAIN = 1e-5
"""Residual branches and the output start close to 0."""

Resample = Literal["down", "up"] | None


def _like(other: Tensor, x: Tensor) -> Tensor:
    """``x`` in the data type of ``other``, with channels last."""
    return x.to(other.dtype, memory_format=torch.channels_last)


def _add_rows(net: "UNet", state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Extends saved weights of versions that added augmentations to t only; no value changes."""
    name = f"{prefix}augment.weight"
    if net.augment is not None and name in state:
        state[name] = with_rows(state[name], net.augment.weight)


class Block(nn.Module):
    """A residual block: norm, SiLU and 3x3 convolution, twice; the embedding enters in between."""

    def __init__(
        self, channels: int, out: int, emb: int, dropout: float, resample: Resample, heads: int
    ) -> None:
        """``heads`` > 0 adds self-attention after the block."""
        super().__init__()
        self.resample = resample
        self.norm0, self.norm1 = GroupNorm(channels), GroupNorm(out)
        self.conv0 = initialise(Conv2d(channels, out, 3, padding=1))
        self.conv1 = initialise(Conv2d(out, out, 3, padding=1), gain=OUT_GAIN)
        self.affine = initialise(Linear(emb, out))
        self.dropout = Dropout(dropout)
        adapt = channels != out or resample is not None
        self.skip = initialise(Conv2d(channels, out, 1)) if adapt else nn.Identity()
        self.attention = SelfAttention(out, heads, OUT_GAIN) if heads else None

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return upsample(x) if self.resample == "up" else downsample(x)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self._resize(silu(self.norm0(x))))
        h = silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        x = scaled(self.conv1(self.dropout(h)) + self.skip(self._resize(x)), math.sqrt(0.5))
        if self.attention is not None:
            x = scaled(self.attention(x), math.sqrt(0.5))
        return x


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A DDPM++ U-Net; the defaults are the CIFAR-10 network of Mean Flows (arXiv 2505.13447)."""

    channels: int = 128
    """Channels at full resolution, a multiple of 4."""
    multipliers: tuple[int, ...] = (2, 2, 2)
    """Channel factor of each level; every level after the first halves the resolution."""
    blocks: int = 4
    """Residual blocks of each level; the decoder has one more."""
    attention: tuple[int, ...] = (16,)
    """Resolutions (heights in pixels) with self-attention."""
    heads: int = 1
    """Attention heads."""
    dropout: float = 0.2
    """Dropout probability inside residual blocks."""
    velocity_head: bool = False
    """Add a second output convolution, for the velocity at t: the proxy `head`."""
    classes: int = 0
    """Number of classes of the labels; 0: unconditional."""
    guided: bool = False
    """Whether it takes the guidance scale as input; sampling then chooses the scale."""
    guided_interval: bool = False
    """Whether it takes the interval of guided times as input, too."""
    augmentations: int = 0
    """Size of the augment labels, which describe an image's augmentation; 0: it takes none."""

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"channels must be a positive multiple of 4; got {self.channels}")
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1:
            raise ValueError(
                "a U-Net needs positive multipliers and at least 1 block; "
                f"got {self.multipliers} and {self.blocks}"
            )
        if self.heads < 1 or any(self.channels * m % self.heads for m in self.multipliers):
            raise ValueError(f"heads must divide the channels of every level; got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        check_classes(self.classes, self.guided, self.guided_interval)
        if self.augmentations < 0:
            raise ValueError(f"augmentations must be at least 0; got {self.augmentations}")

    def build(self, shape: tuple[int, ...]) -> "UNet":
        """The network for images of ``shape`` (channels, height, width)."""
        factor = 2 ** (len(self.multipliers) - 1)
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"this U-Net takes images (channels, height, width) with height and width "
                f"divisible by {factor}; got samples of shape {shape}"
            )
        return UNet(self, shape)


class UNet(nn.Module):
    """u(z, r, t) on images (batch, channels, height, width), with t and t - r embedded.

    With classes, embeddings of the labels ``y`` are added to those of the times; None is no class.
    If guided, so is an embedding of ``kappa`` = 1 - 1 / scale, None is 0, and perhaps those of the
    times of ``interval`` (batch, 2); None is [0, 1]. ``augment_labels`` (batch, augmentations)
    describe each image's augmentation: a linear map of them is added to the sinusoids of t and
    t - r; None and zeros mean an unchanged image.
    """

    def __init__(self, config: UNetConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, emb = config, 4 * config.channels
        self.map0 = initialise(Linear(4 * config.channels, emb))
        self.map1 = initialise(Linear(emb, emb))
        self.conv_in = initialise(Conv2d(shape[0], config.channels, 3, padding=1))
        self.down, skips, width = self._encoder(shape[1])
        self.up, self.joins, width = self._decoder(shape[1], skips, width)
        self.norm_out = GroupNorm(width)
        self.conv_out = initialise(Conv2d(width, shape[0], 3, padding=1), gain=OUT_GAIN)
        self.velocity_head = (
            initialise(Conv2d(width, shape[0], 3, padding=1), gain=OUT_GAIN)
            if config.velocity_head
            else None
        )
        inputs = config.guided, config.guided_interval
        self.labels = ClassEmbedding(config.classes, emb, *inputs) if config.classes else None
        if self.labels is not None:  # EDM's linear map of sqrt(classes) times a one-hot label
            nn.init.xavier_uniform_(self.labels.table.weight, gain=math.sqrt(config.classes))
        self.augment = (
            initialise(Linear(config.augmentations, 4 * config.channels, bias=False))
            if config.augmentations
            else None
        )
        self.register_load_state_dict_pre_hook(_add_rows)

    def _block(
        self, width: int, out: int, resample: Resample = None, attend: bool = False
    ) -> Block:
        c = self.config
        return Block(width, out, 4 * c.channels, c.dropout, resample, c.heads if attend else 0)

    def _encoder(self, size: int) -> tuple[nn.ModuleList, list[int], int]:
        blocks, width = nn.ModuleList(), self.config.channels
        skips = [width]
        for level, multiplier in enumerate(self.config.multipliers):
            out, attend = self.config.channels * multiplier, size >> level in self.config.attention
            if level:
                blocks.append(self._block(width, width, "down"))
                skips.append(width)
            for _ in range(self.config.blocks):
                blocks.append(self._block(width, out, attend=attend))
                width = out
                skips.append(width)
        return blocks, skips, width

    def _decoder(
        self, size: int, skips: list[int], width: int
    ) -> tuple[nn.ModuleList, list[tuple[int, int] | None], int]:
        blocks = nn.ModuleList([self._block(width, width, attend=True), self._block(width, width)])
        skips = list(skips)
        joins: list[tuple[int, int] | None] = [None, None]  # channels of the blocks' inputs
        for level, multiplier in reversed(list(enumerate(self.config.multipliers))):
            out, attend = self.config.channels * multiplier, size >> level in self.config.attention
            if level < len(self.config.multipliers) - 1:
                blocks.append(self._block(width, width, "up"))
                joins.append(None)
            for index in range(self.config.blocks + 1):
                last = index == self.config.blocks
                skip = skips.pop()
                blocks.append(self._block(width + skip, out, attend=attend and last))
                joins.append((width, skip))
                width = out
        return blocks, joins, width

    def forward(
        self,
        z: Sample,
        r: Time,
        t: Time,
        y: Label | None = None,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Sample:
        known = y, kappa, interval, augment_labels
        if in_dual_mode():
            hidden = fast.hidden(self, z, r, t, *known)
            keep(self, r, t, hidden)
            return apply_with_tangent(partial(_like, value_of(z)), self.conv_out(hidden))
        hidden = self._hidden(z, r, t, *known)
        keep(self, r, t, hidden)
        return self.conv_out(hidden).to(z.dtype)

    def velocity(self, z: Sample, t: Time, *known: Tensor | None, r: Time | None = None) -> Sample:
        """v(z, t) by the velocity head, of blocks at ``r``, or at t; labels as ``forward``'s."""
        assert self.velocity_head is not None
        times = t if r is None else r, t
        compute = partial(fast.hidden, self) if in_dual_mode() else self._hidden
        (hidden,) = kept(self, *times) or (compute(z, *times, *known),)
        return self.velocity_head(hidden).to(z.dtype)

    def _hidden(self, z: Sample, r: Time, t: Time, *known: Tensor | None) -> Tensor:
        emb = self.embedded(t, r, *known)
        x = self.conv_in(z.to(self.conv_in.weight.dtype))
        skips = [x]
        for block in self.down:
            x = again_backward(block, Block.__call__, x, emb)
            skips.append(x)
        for block, join in zip(self.up, self.joins, strict=True):
            x = torch.cat([x, skips.pop()], 1) if join else x
            x = again_backward(block, Block.__call__, x, emb)
        return silu(self.norm_out(x))

    def as_input(self, z: Sample) -> Sample:
        """Images in the data type of the weights, with channels last."""
        return _like(self.conv_in.weight, z)

    def embedded(
        self,
        t: Time,
        r: Time,
        y: Label | None = None,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The embedding that every block takes: times, labels and augmentation."""
        dtype, channels = self.conv_in.weight.dtype, self.config.channels
        times = [sinusoid(s, 2 * channels, endpoint=True).to(dtype) for s in (t, t - r)]
        known = torch.cat(times, 1)
        if self.augment is not None and augment_labels is not None:
            known = known + self.augment(augment_labels.to(dtype))
        if self.labels is not None:
            known = known + self.labels(y, len(t), kappa, interval)
        else:
            refuse_labels(y)
        return silu(self.map1(silu(self.map0(known))))
