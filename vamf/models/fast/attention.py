"""Attention between pixels or tokens, with its tangent, in operations that are fast on a GPU.

Between pixels the backward pass uses the attention weights as they were multiplied: rounded, if
images are. Between tokens they are never written down, but computed again.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vamf.flow.duals import Dual
from vamf.models.fast.fused import TRITON, ops_for

LARGEST_HEAD = 128
"""Channels of a head for which there is a kernel between tokens."""


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """q, k and v, each (batch, heads, pixels, c); does not copy if channels are last."""
    b, c, h, w = qkv.shape
    split = qkv.permute(0, 2, 3, 1).reshape(b, h * w, 3, heads, c // 3 // heads)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def _pixels(x: Tensor, like: Tensor) -> Tensor:
    b, c, h, w = like.shape
    return x.transpose(1, 2).reshape(b, h, w, c // 3).permute(0, 3, 1, 2)


class _Attend(Function):
    """Returns the images and their tangent."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, d: Tensor | None, heads: int
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        q, k, v = _heads(qkv, heads)
        ctx.heads, ctx.scale = heads, 1 / math.sqrt(q.shape[-1])
        weights = ops_for(q).softmax(q @ k.mT, ctx.scale)
        ctx.save_for_backward(qkv, weights)
        y = _pixels(weights @ v, qkv)
        if d is None:
            return y, None
        dq, dk, dv = _heads(d, heads)
        q, k, v, weights = (part[len(qkv) - len(d) :] for part in (q, k, v, weights))
        change = ops_for(q).softmax_tangent(weights, dq @ k.mT + q @ dk.mT, ctx.scale)
        dy = _pixels(change @ v + weights @ dv, d)
        ctx.mark_non_differentiable(dy)
        return y, dy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
        if g is None:
            return None, None, None
        qkv, weights = ctx.saved_tensors
        q, k, v = _heads(qkv, ctx.heads)
        b, c, h, w = g.shape
        g = g.permute(0, 2, 3, 1).reshape(b, h * w, ctx.heads, c // ctx.heads).transpose(1, 2)
        change = ops_for(g).softmax_tangent(weights, g @ v.mT, ctx.scale)
        parts = change @ k, change.mT @ q, weights.mT @ g
        joined = torch.stack([part.transpose(1, 2) for part in parts], 2)
        return joined.reshape(b, h, w, 3 * c).permute(0, 3, 1, 2), None, None


def between_pixels(qkv: Tensor | Dual, heads: int) -> Tensor | Dual:
    """softmax(q k / sqrt(d)) v over the pixels of each image (batch, C, H, W) of 3 C channels.

    The channels are those of q, then k, then v; each has its heads in order, of d channels each.
    The softmax is computed in at least float32.
    """
    if isinstance(qkv, Dual):
        return Dual(*_Attend.apply(qkv.value, qkv.tangent, heads))
    return _Attend.apply(qkv, None, heads)[0]


class _AttendTokens(Function):
    """Returns the tokens and their tangent."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, moved: Tensor | None, heads: int
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        y, dy, logs = ops_for(qkv).attend(qkv, moved, heads)
        ctx.save_for_backward(qkv, y, logs)
        ctx.heads = heads
        if dy is not None:
            ctx.mark_non_differentiable(dy)
        return y, dy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
        if g is None:
            return None, None, None
        qkv, y, logs = ctx.saved_tensors
        return ops_for(qkv).attend_backward(qkv, y, logs, g, ctx.heads), None, None


def between_tokens(qkv: Tensor | Dual, heads: int) -> Tensor | Dual:
    """softmax(q k / sqrt(d)) v between the tokens of each sample, (batch, tokens, 3 heads d).

    The channels are those of q, then k, then v; each has its heads in order, of d channels each.
    Needs memory linear in the tokens, where ``has_kernel`` is true.
    """
    if isinstance(qkv, Dual):
        return Dual(*_AttendTokens.apply(qkv.value, qkv.tangent, heads))
    return _AttendTokens.apply(qkv, None, heads)[0]


def has_kernel(qkv: Tensor, heads: int) -> bool:
    """Whether ``between_tokens`` can be used for this tensor's device, precision and heads.

    Products of float32 numbers without rounding are faster by torch's own; larger heads do not fit
    into the shared memory of all GPUs.
    """
    size = qkv.shape[-1] // 3 // heads
    return TRITON and qkv.is_cuda and qkv.dtype == torch.bfloat16 and size <= LARGEST_HEAD
