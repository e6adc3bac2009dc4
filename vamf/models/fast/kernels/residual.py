"""The sum of two images and a bias."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vamf.models.fast.kernels.launch import launch
from vamf.models.fast.kernels.rows import CHANNELS, LAST, NARROW, SUM, WRITE, add_up, rows


@triton.jit(do_not_specialize=["M"])
def _scaled_sum(
    x,
    y,
    bias,
    out,
    ldx,
    ldy,
    ldo,
    M,
    C,
    half,
    BIAS: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP))[:, None]
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < M) & (c < C)[None, :]
    total = tl.load(x + row * ldx + c[None, :], mask=mask, other=0).to(tl.float32)
    total += tl.load(y + row * ldy + c[None, :], mask=mask, other=0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + c, mask=c < C, other=0).to(tl.float32)[None, :]
    tl.store(out + row * ldo + c[None, :], total * half, mask=mask)


@triton.jit(do_not_specialize=["M"])
def _scaled_sum_backward(
    g,
    out,
    sums,
    ldg,
    M,
    C,
    half,
    BIAS: tl.constexpr,
    SPAN: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    s = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BP, BC], tl.float32)
    for start in range(0, SPAN, BP):
        row = (s * SPAN + start + tl.arange(0, BP))[:, None]
        mask = (row < M) & (c < C)[None, :]
        back = tl.load(g + row * ldg + c[None, :], mask=mask, other=0).to(tl.float32) * half
        total += back
        tl.store(out + row * C + c[None, :], back, mask=mask)
    if BIAS:
        tl.store(sums + s * C + c, tl.sum(total, 0), mask=c < C)


def scaled_sum(
    x: Tensor, y: Tensor, bias: Tensor | None, half: float, to: Tensor | None = None
) -> Tensor:
    """(x + y + bias) half, written ``to`` an image with channels last, or some of its channels."""
    (x, ldx), (y, ldy), c, m = rows(x), rows(y), x.shape[1], x.numel() // x.shape[1]
    out = torch.empty_like(x, memory_format=LAST) if to is None else to
    launch(
        _scaled_sum,
        (triton.cdiv(m, WRITE["BP"]), triton.cdiv(c, CHANNELS)),
        x,
        y,
        x if bias is None else bias,
        out,
        ldx,
        ldy,
        out.stride(3),
        m,
        c,
        half,
        BIAS=bias is not None,
        BC=CHANNELS,
        **WRITE,
    )
    return out


def scaled_sum_backward(
    g: Tensor, bias: Tensor | None, half: float
) -> tuple[Tensor, Tensor | None]:
    """half g, and its sum over images and pixels."""
    (g, ldg), c = rows(g), g.shape[1]
    out, m = torch.empty_like(g, memory_format=LAST), g.numel() // c
    spans = triton.cdiv(m, SUM["SPAN"])
    sums = torch.empty(spans, c, device=g.device, dtype=torch.float32)
    launch(
        _scaled_sum_backward,
        (spans, triton.cdiv(c, CHANNELS)),
        g,
        out,
        sums,
        ldg,
        m,
        c,
        half,
        BIAS=bias is not None,
        BC=CHANNELS,
        **SUM,
    )
    if bias is None:
        return out, None
    total = torch.empty_like(bias)
    launch(
        add_up,
        (triton.cdiv(c, NARROW), 1),
        sums,
        total,
        total,
        total,
        spans,
        c,
        BC=NARROW,
        BP=NARROW,
    )
    return out, total
