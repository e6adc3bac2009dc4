"""The U-Net on the fast path: its layers in fused operations, of tensors or of duals.

Each function computes the same as the layer's ``forward``, up to rounding. ``vamf.models.unet`` and
``vamf.models.layers`` contain the layers, written as in the papers.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from vamf.dropout import mask_of
from vamf.flow.derivatives import apply_with_tangent
from vamf.flow.duals import Dual, linearly, value_of
from vamf.models.fast import attention, fused
from vamf.models.fast.concat_buffer import BufferSlot, ConcatBuffer
from vamf.models.recomputation import again_backward
from vamf.typing import Time

if TYPE_CHECKING:
    from vamf.models.layers import Dropout, GroupNorm, SelfAttention
    from vamf.models.unet import Block, UNet

Images = Tensor | Dual


def bias_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The bias of a layer that has one."""
    assert layer.bias is not None
    return layer.bias


def group_norm(
    norm: "GroupNorm",
    x: Images,
    shift: Images | None = None,
    offset: Tensor | None = None,
    *,
    activate: bool = True,
    dropout: "Dropout | None" = None,
    copies: int = 0,
) -> tuple[Images, ...]:
    """dropout(silu(norm(x + shift + offset))), and copies of x: see ``fused.normalise``."""
    kept = None if dropout is None else mask_of(dropout, value_of(x), dropout.p)
    p = 0.0 if dropout is None or kept is None else dropout.p
    how = fused.Normalisation(norm.groups, norm.eps, activate, p)
    return fused.normalise(x, shift, offset, norm.weight, norm.bias, how, copies, kept)


def self_attention(layer: "SelfAttention", x: Images, slot: BufferSlot | None = None) -> Images:
    """The layer's output times sqrt(1/2)."""
    h, x = group_norm(layer.norm, x, activate=False, copies=1)
    mixed = attention.between_pixels(fused.mix_channels(h, layer.qkv), layer.heads)
    return fused.residual(x, fused.convolve(mixed, layer.proj), bias_of(layer.proj), slot)


def block(layer: "Block", x: Images, emb: Images, slot: BufferSlot | None) -> tuple[Images, Images]:
    """The block's output, written to ``slot`` if there is one, and a copy of x for other uses."""
    h, x, before = group_norm(layer.norm0, x, copies=2)
    h = fused.convolve(_resize(layer, h), layer.conv0)
    times = partial(F.linear, weight=layer.affine.weight)
    shift, offset = linearly(emb, times, times), bias_of(layer.affine) + bias_of(layer.conv0)
    (h,) = group_norm(layer.norm1, h, shift, offset, dropout=layer.dropout)
    h, x, bias = fused.convolve(h, layer.conv1), _resize(layer, x), bias_of(layer.conv1)
    if isinstance(layer.skip, nn.Conv2d):
        x, bias = fused.convolve(x, layer.skip), bias + bias_of(layer.skip)
    if layer.attention is None:
        return fused.residual(h, x, bias, slot), before
    return self_attention(layer.attention, fused.residual(h, x, bias), slot), before


def _resize(layer: "Block", x: Any) -> Any:
    return x if layer.resample is None else fused.resample(x, up=layer.resample == "up")


def _block(
    layer: "Block", x: Images, emb: Images, slot: BufferSlot | None
) -> tuple[Images, Images]:
    """The block; in the backward pass without the slot, which others may have written since."""
    alone = partial(block, slot=None)
    return again_backward(layer, partial(block, slot=slot), x, emb, again=alone)


def hidden(net: "UNet", z: Images, r: Time, t: Images, *known: Tensor | None) -> Images:
    """The input of the output convolutions.

    Skip connections are concatenated without copies: each block writes to the buffer in which its
    output is needed.
    """
    emb = apply_with_tangent(net.embedded, t, r, *known)
    x, skips = net.conv_in(apply_with_tangent(net.as_input, z)), []
    buffers = [None if join is None else ConcatBuffer(*join) for join in net.joins]
    seconds = [BufferSlot(buffer, 1) for buffer in reversed(buffers) if buffer]
    for layer, slot in zip(net.down, seconds[1:], strict=True):  # the first slot is conv_in's
        x, before = _block(layer, x, emb, slot)  # type: ignore[arg-type]
        skips.append(before)
    firsts = [buffer and BufferSlot(buffer, 0) for buffer in (*buffers[1:], None)]
    for index, layer in enumerate(net.up):
        if buffer := buffers[index]:
            x = fused.joined(x, skips.pop(), buffer)
        x, before = _block(layer, x, emb, firsts[index])  # type: ignore[arg-type]
        if not index:
            skips.append(before)
    return group_norm(net.norm_out, x)[0]
