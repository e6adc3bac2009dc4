"""Softmax over the rows of a table, and its derivative."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vamf.models.fast.kernels.launch import launch

NUMBERS = 1024
"""Numbers in the rows that one program handles; it handles at least one row."""


@triton.jit(do_not_specialize=["M"])
def _softmax(x, out, M, N, scale, BP: tl.constexpr, BC: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP))[:, None]
    c = tl.arange(0, BC)[None, :]
    mask = (row < M) & (c < N)
    v = tl.load(x + row * N + c, mask=mask, other=0).to(tl.float32) * scale
    v = tl.where(c < N, v, float("-inf"))
    e = tl.exp(v - tl.max(v, 1)[:, None])
    tl.store(out + row * N + c, e / tl.sum(e, 1)[:, None], mask=mask)


@triton.jit(do_not_specialize=["M"])
def _softmax_tangent(weights, d, out, M, N, scale, BP: tl.constexpr, BC: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP))[:, None]
    c = tl.arange(0, BC)[None, :]
    mask = (row < M) & (c < N)
    w = tl.load(weights + row * N + c, mask=mask, other=0).to(tl.float32)
    v = tl.load(d + row * N + c, mask=mask, other=0).to(tl.float32)
    v = w * (v - tl.sum(w * v, 1)[:, None]) * scale
    tl.store(out + row * N + c, v, mask=mask)


def _tiles(x: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The number of programs, and the shape of each one's tile."""
    n = x.shape[-1]
    columns = triton.next_power_of_2(n)
    tile = {"BP": max(1, NUMBERS // columns), "BC": columns}
    return (triton.cdiv(x.numel() // n, tile["BP"]),), tile


def softmax(x: Tensor, scale: float) -> Tensor:
    """softmax(scale x) over the last axis."""
    x = x.contiguous()
    out, n, (programs, tile) = torch.empty_like(x), x.shape[-1], _tiles(x)
    launch(_softmax, programs, x, out, x.numel() // n, n, scale, **tile)
    return out


def softmax_tangent(weights: Tensor, d: Tensor, scale: float) -> Tensor:
    """The tangent of ``softmax`` along ``d``, from its result ``weights``; also its gradient."""
    weights, d = weights.contiguous(), d.contiguous()
    out, n, (programs, tile) = torch.empty_like(d), d.shape[-1], _tiles(d)
    launch(_softmax_tangent, programs, weights, d, out, d.numel() // n, n, scale, **tile)
    return out
