"""The backward pass of normalisation, SiLU and dropout."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vamf.models.fast.kernels.launch import launch
from vamf.models.fast.kernels.normalisation import grid, silu_slope
from vamf.models.fast.kernels.rows import CHANNELS, LAST, NARROW, TOGETHER, WRITE, add_up, rows

SUM = {"SPAN": 256, "BP": 16, "num_warps": 4}
SUM_SMALL = {"SPAN": 64, "BP": 32, "num_warps": 2}
"""Like ``rows.SUM``; SUM_SMALL is for images with fewer pixels than SUM's span."""


@triton.jit
def _before(
    g,
    x,
    kept,
    row,
    c,
    mask,
    ldg,
    ldx,
    C,
    factor,
    constant,
    scale,
    SILU: tl.constexpr,
    DROP: tl.constexpr,
):
    """The gradient before SiLU and dropout, and x."""
    value = tl.load(x + row * ldx + c[None, :], mask=mask, other=0).to(tl.float32)
    back = tl.load(g + row * ldg + c[None, :], mask=mask, other=0).to(tl.float32)
    if DROP:
        back *= tl.load(kept + row * C + c[None, :], mask=mask, other=0).to(tl.float32) * scale
    if SILU:
        back *= silu_slope(value * factor + constant)
    return back, value


@triton.jit(do_not_specialize=["N", "P"])
def _sums_backward(
    g,
    x,
    kept,
    coefficients,
    out,
    ldg,
    ldx,
    size,
    scale,
    N,
    C,
    P,
    SILU: tl.constexpr,
    DROP: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Sums over a span of pixels: the gradient, and its product with x - origin."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    there = c < C
    at = coefficients + n * C + c
    factor = tl.load(at, mask=there, other=0)[None, :]
    constant = tl.load(at + size, mask=there, other=0)[None, :]
    origin = tl.load(at + 2 * size, mask=there, other=0)[None, :]
    alone = tl.zeros([BP, BC], tl.float32)
    product = tl.zeros([BP, BC], tl.float32)
    for start in range(0, SPAN, BP):
        p = s * SPAN + start + tl.arange(0, BP)
        mask = (p < P)[:, None] & there[None, :]
        row = n * P + p[:, None]
        back, value = _before(
            g, x, kept, row, c, mask, ldg, ldx, C, factor, constant, scale, SILU, DROP
        )
        alone += back
        product += back * (value - origin)
    to = out + (s * 2 * N + n) * C + c
    tl.store(to, tl.sum(alone, 0), mask=there)
    tl.store(to + size, tl.sum(product, 0), mask=there)


@triton.jit(do_not_specialize=["P", "SPANS"])
def _coefficients_backward(
    sums,
    coefficients,
    weight,
    out,
    gshift,
    size,
    P,
    G: tl.constexpr,
    J: tl.constexpr,
    SPANS,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    n, C = tl.program_id(0).to(tl.int64), G * J
    g, j = tl.arange(0, BG)[:, None], tl.arange(0, BJ)[None, :]
    there, c = (g < G) & (j < J), g * J + j
    alone = tl.zeros([BG, BJ], tl.float32)
    product = tl.zeros([BG, BJ], tl.float32)
    for start in range(0, SPANS, TOGETHER):
        for s in range(TOGETHER):
            span = tl.full([1, 1], start + s, tl.int32)
            at = sums + span * 2 * size + n * C + c
            here = there & (span < SPANS)
            alone += tl.load(at, mask=here, other=0)
            product += tl.load(at + size, mask=here, other=0)
    at = coefficients + n * C + c
    factor = tl.load(at, mask=there, other=0)
    origin = tl.load(at + 2 * size, mask=there, other=0)
    gap = tl.load(at + 3 * size, mask=there, other=0)
    inverse = tl.load(at + 4 * size, mask=there, other=0)
    product = product * inverse
    w = tl.load(weight + c, mask=there, other=0).to(tl.float32)
    total = (tl.sum(tl.where(there, w * alone, 0), 1) / J)[:, None]
    across = inverse * total / P
    total = (tl.sum(tl.where(there, w * product, 0), 1) / J)[:, None]
    along = inverse * inverse * total / P
    to = out + n * C + c
    tl.store(to, alone, mask=there)
    tl.store(to + size, product, mask=there)
    shifted = factor * alone - P * (gap * along + across)
    tl.store(to + 2 * size, shifted, mask=there)
    tl.store(gshift + n * C + c, shifted, mask=there)
    tl.store(to + 3 * size, along, mask=there)
    tl.store(to + 4 * size, origin * along - across, mask=there)


@triton.jit(do_not_specialize=["P"])
def _apply_backward(
    g,
    more,
    others,
    x,
    kept,
    coefficients,
    slopes,
    gx,
    ldg,
    ldm,
    ldo,
    ldx,
    size,
    scale,
    C,
    P,
    SILU: tl.constexpr,
    DROP: tl.constexpr,
    BESIDE: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    mask = (p < P)[:, None] & (c < C)[None, :]
    row = n * P + p[:, None]
    at = coefficients + n * C + c
    factor = tl.load(at, mask=c < C, other=0)[None, :]
    constant = tl.load(at + size, mask=c < C, other=0)[None, :]
    at = slopes + n * C + c
    along = tl.load(at + 3 * size, mask=c < C, other=0)[None, :]
    rest = tl.load(at + 4 * size, mask=c < C, other=0)[None, :]
    back, value = _before(
        g, x, kept, row, c, mask, ldg, ldx, C, factor, constant, scale, SILU, DROP
    )
    out = back * factor - value * along + rest
    if BESIDE > 0:
        out += tl.load(more + row * ldm + c[None, :], mask=mask, other=0).to(tl.float32)
    if BESIDE > 1:
        out += tl.load(others + row * ldo + c[None, :], mask=mask, other=0).to(tl.float32)
    tl.store(gx + row * C + c[None, :], out, mask=mask)


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
    """As ``reference_ops.normalise_backward``."""
    summed = SUM if x[0, 0].numel() >= SUM["SPAN"] else SUM_SMALL
    (g, ldg), (x, ldx), (n, c, p, spans) = rows(g), rows(x), grid(x, summed["SPAN"])
    (more, ldm), (others, ldo) = [rows(b) for b in (*beside, x, x)][:2]
    size, scale, blocks = n * c, 1 / (1 - dropout), triton.cdiv(c, CHANNELS)
    sums = torch.empty(spans, 2, n, c, device=x.device, dtype=torch.float32)
    slopes = torch.empty(5, n, c, device=x.device, dtype=torch.float32)
    mask = x if kept is None else kept
    flags = {"SILU": activate, "DROP": kept is not None, "BC": CHANNELS}
    launch(
        _sums_backward,
        (n, blocks, spans),
        g,
        x,
        mask,
        coefficients,
        sums,
        ldg,
        ldx,
        size,
        scale,
        n,
        c,
        p,
        **summed,
        **flags,
    )
    each, gshift = c // groups, torch.empty(n, c, device=x.device, dtype=weight.dtype)
    launch(
        _coefficients_backward,
        (n,),
        sums,
        coefficients,
        weight,
        slopes,
        gshift,
        size,
        p,
        groups,
        each,
        spans,
        BG=triton.next_power_of_2(groups),
        BJ=triton.next_power_of_2(each),
    )
    gx = torch.empty_like(x, memory_format=LAST)
    launch(
        _apply_backward,
        (n, triton.cdiv(p, WRITE["BP"]), blocks),
        g,
        more,
        others,
        x,
        mask,
        coefficients,
        slopes,
        gx,
        ldg,
        ldm,
        ldo,
        ldx,
        size,
        scale,
        c,
        p,
        BESIDE=len(beside),
        **WRITE,
        **flags,
    )
    totals = torch.empty(3, c, device=x.device, dtype=weight.dtype)
    launch(add_up, (triton.cdiv(c, NARROW), 3), slopes, *totals, n, c, BC=NARROW, BP=NARROW)
    gb, gw, goffset = totals
    return gx, gshift, goffset, gw, gb
