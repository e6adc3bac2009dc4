"""Attention between tokens with its tangent and its gradient, in memory linear in the tokens.

As in FlashAttention-2 (Dao, arXiv 2307.08691), no table of all pairs of tokens is written. Each sum
has a fixed order, so that results are the same bits every time.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vamf.models.fast.kernels.launch import launch

BLOCK = 64
"""Tokens of a tile of queries, and of a tile of keys."""
LAUNCH = {"num_warps": 4, "num_stages": 2}
LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def _attend(
    qkv, moved, y, dy, logs, N, H, D: tl.constexpr, scale,
    TANGENT: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y, its tangent, and log2 of the sum of exponentials, for a tile of queries of one head."""
    head, sample = tl.program_id(1) % H, tl.program_id(1) // H
    rows, c = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    width, first = 3 * H * D, sample.to(tl.int64) * N * 3 * H * D + head * D
    inside = (rows[:, None] < N) & (c[None, :] < D)
    at = first + rows[:, None] * width + c[None, :]
    q = tl.load(qkv + at, mask=inside, other=0)
    dq = q
    if TANGENT:
        dq = tl.load(moved + at, mask=inside, other=0)
    top = tl.full([BQ], float("-inf"), tl.float32)
    total, along, middle = tl.zeros([BQ], tl.float32), tl.zeros([BQ], tl.float32), top
    value, tangent = tl.zeros([BQ, BD], tl.float32), tl.zeros([BQ, BD], tl.float32)
    for start in range(0, N, BK):
        columns = start + tl.arange(0, BK)
        here = (columns[:, None] < N) & (c[None, :] < D)
        keys = first + H * D + columns[:, None] * width + c[None, :]
        k = tl.load(qkv + keys, mask=here, other=0)
        v = tl.load(qkv + keys + H * D, mask=here, other=0)
        s = tl.dot(q, k.T, input_precision="ieee") * (scale * LOG2E)
        s = tl.where(columns[None, :] < N, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p, less = tl.exp2(s - higher[:, None]), tl.exp2(top - higher)
        total, top = total * less + tl.sum(p, 1), higher
        value = value * less[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        if TANGENT:
            dk = tl.load(moved + keys, mask=here, other=0)
            dv = tl.load(moved + keys + H * D, mask=here, other=0)
            ds = tl.dot(dq, k.T, input_precision="ieee") + tl.dot(q, dk.T, input_precision="ieee")
            ds *= scale
            if start == 0:  # what all keys share cancels in the end, and would cost digits
                middle = tl.sum(p * ds, 1) / tl.sum(p, 1)
            w = p * (ds - middle[:, None])
            along = along * less + tl.sum(w, 1)
            tangent *= less[:, None]
            tangent += tl.dot(w.to(v.dtype), v, input_precision="ieee")
            tangent += tl.dot(p.to(dv.dtype), dv, input_precision="ieee")
    value /= total[:, None]
    out = sample.to(tl.int64) * N * H * D + head * D + rows[:, None] * (H * D) + c[None, :]
    tl.store(y + out, value, mask=inside)
    tl.store(logs + tl.program_id(1).to(tl.int64) * N + rows, top + tl.log2(total), mask=rows < N)
    if TANGENT:
        tl.store(dy + out, (tangent - value * along[:, None]) / total[:, None], mask=inside)


@triton.jit
def _queries_backward(
    qkv, y, g, logs, sums, out, N, H, D: tl.constexpr, scale,
    BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries; and the sums over channels of g y, for the keys."""
    head, sample = tl.program_id(1) % H, tl.program_id(1) // H
    rows, c = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    width, first = 3 * H * D, sample.to(tl.int64) * N * 3 * H * D + head * D
    inside = (rows[:, None] < N) & (c[None, :] < D)
    own = sample.to(tl.int64) * N * H * D + head * D + rows[:, None] * (H * D) + c[None, :]
    at = first + rows[:, None] * width + c[None, :]
    q = tl.load(qkv + at, mask=inside, other=0)
    go = tl.load(g + own, mask=inside, other=0)
    delta = tl.sum(go.to(tl.float32) * tl.load(y + own, mask=inside, other=0).to(tl.float32), 1)
    place = tl.program_id(1).to(tl.int64) * N + rows
    tl.store(sums + place, delta, mask=rows < N)
    log = tl.load(logs + place, mask=rows < N, other=0)
    found = tl.zeros([BQ, BD], tl.float32)
    for start in range(0, N, BK):
        columns = start + tl.arange(0, BK)
        here = (columns[:, None] < N) & (c[None, :] < D)
        keys = first + H * D + columns[:, None] * width + c[None, :]
        k = tl.load(qkv + keys, mask=here, other=0)
        v = tl.load(qkv + keys + H * D, mask=here, other=0)
        s = tl.dot(q, k.T, input_precision="ieee") * (scale * LOG2E)
        p = tl.where(columns[None, :] < N, tl.exp2(s - log[:, None]), 0.0)
        ds = p * (tl.dot(go, v.T, input_precision="ieee") - delta[:, None])
        found += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(out + at, found * scale, mask=inside)


@triton.jit
def _keys_backward(
    qkv, g, logs, sums, out, N, H, D: tl.constexpr, scale,
    BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and of their values."""
    head, sample = tl.program_id(1) % H, tl.program_id(1) // H
    columns, c = tl.program_id(0) * BK + tl.arange(0, BK), tl.arange(0, BD)
    width, first = 3 * H * D, sample.to(tl.int64) * N * 3 * H * D + head * D
    here = (columns[:, None] < N) & (c[None, :] < D)
    keys = first + H * D + columns[:, None] * width + c[None, :]
    k = tl.load(qkv + keys, mask=here, other=0)
    v = tl.load(qkv + keys + H * D, mask=here, other=0)
    gk, gv = tl.zeros([BK, BD], tl.float32), tl.zeros([BK, BD], tl.float32)
    for start in range(0, N, BQ):
        rows = start + tl.arange(0, BQ)
        inside = (rows[:, None] < N) & (c[None, :] < D)
        own = sample.to(tl.int64) * N * H * D + head * D + rows[:, None] * (H * D) + c[None, :]
        q = tl.load(qkv + first + rows[:, None] * width + c[None, :], mask=inside, other=0)
        go = tl.load(g + own, mask=inside, other=0)
        place = tl.program_id(1).to(tl.int64) * N + rows
        log = tl.load(logs + place, mask=rows < N, other=0)
        delta = tl.load(sums + place, mask=rows < N, other=0)
        s = tl.dot(k, q.T, input_precision="ieee") * (scale * LOG2E)
        p = tl.where(rows[None, :] < N, tl.exp2(s - log[None, :]), 0.0)
        gv += tl.dot(p.to(go.dtype), go, input_precision="ieee")
        ds = p * (tl.dot(v, go.T, input_precision="ieee") - delta[None, :])
        gk += tl.dot(ds.to(q.dtype), q, input_precision="ieee")
    tl.store(out + keys, gk * scale, mask=here)
    tl.store(out + keys + H * D, gv, mask=here)


def _sizes(qkv: Tensor, heads: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """The number of programs of a kernel, and its last arguments."""
    samples, tokens, width = qkv.shape
    d = width // 3 // heads
    tile = {"BD": max(16, triton.next_power_of_2(d)), "BQ": BLOCK, "BK": BLOCK}
    sizes = {"N": tokens, "H": heads, "D": d, "scale": 1 / math.sqrt(d)}
    return (triton.cdiv(tokens, BLOCK), samples * heads), sizes | tile | LAUNCH


def attend(qkv: Tensor, moved: Tensor | None, heads: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """softmax(q k / sqrt(d)) v between tokens, its tangent along ``moved``, and numbers for later.

    ``qkv`` (batch, tokens, 3 heads d) has q, then k, then v; ``moved`` has the tangents of the last
    samples.
    """
    qkv = qkv.contiguous()
    samples, tokens, width = qkv.shape
    y = qkv.new_empty(samples, tokens, width // 3)
    logs = torch.empty(samples, heads, tokens, device=qkv.device)
    n = samples if moved is None else samples - len(moved)
    if n:
        programs, sizes = _sizes(qkv[:n], heads)
        launch(_attend, programs, qkv, qkv, y, y, logs, **sizes, TANGENT=False)
    if moved is None:
        return y, None, logs
    moved, dy = moved.contiguous(), torch.empty_like(y[n:])
    if n == samples:
        return y, dy, logs
    programs, sizes = _sizes(moved, heads)
    launch(_attend, programs, qkv[n:], moved, y[n:], dy, logs[n:], **sizes, TANGENT=True)
    return y, dy, logs


def attend_backward(qkv: Tensor, y: Tensor, logs: Tensor, g: Tensor, heads: int) -> Tensor:
    """The gradient of ``attend`` for that of its value, ``g`` (batch, tokens, heads d)."""
    qkv, g = qkv.contiguous(), g.contiguous()
    out, sums, (programs, sizes) = torch.empty_like(qkv), torch.empty_like(logs), _sizes(qkv, heads)
    launch(_queries_backward, programs, qkv, y, g, logs, sums, out, **sizes)
    launch(_keys_backward, programs, qkv, g, logs, sums, out, **sizes)
    return out
