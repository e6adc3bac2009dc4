"""Normalisation over groups of channels, SiLU and dropout, with a tangent."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vamf.models.fast.kernels.launch import launch
from vamf.models.fast.kernels.rows import CHANNELS, LAST, SUM, TOGETHER, WRITE, rows


@triton.jit
def silu_slope(h):
    p = tl.sigmoid(h)
    return p * (1 + h * (1 - p))


@triton.jit(do_not_specialize=["n_constant", "N", "P"])
def _sums(
    x,
    d,
    out,
    ldx,
    ldd,
    n_constant,
    N,
    P,
    C,
    size,
    TANGENT: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Sums over a span of pixels: x - pivot and its square; d and its product with x - pivot."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    there = c < C
    pivot = tl.load(x + n * P * ldx + c, mask=there, other=0).to(tl.float32)
    first = tl.zeros([BP, BC], tl.float32)  # tiles; they are summed once at the end
    second = tl.zeros([BP, BC], tl.float32)
    third = tl.zeros([BP, BC], tl.float32)
    fourth = tl.zeros([BP, BC], tl.float32)
    for start in range(0, SPAN, BP):
        p = s * SPAN + start + tl.arange(0, BP)
        mask = (p < P)[:, None] & there[None, :]
        at = x + (n * P + p[:, None]) * ldx + c[None, :]
        apart = tl.load(at, mask=mask, other=0).to(tl.float32) - pivot[None, :]
        apart = tl.where(mask, apart, 0)
        first += apart
        second += apart * apart
        if TANGENT:
            if n >= n_constant:
                at = d + ((n - n_constant) * P + p[:, None]) * ldd + c[None, :]
                moved = tl.load(at, mask=mask, other=0).to(tl.float32)
                third += moved
                fourth += moved * apart
    to = out + (s * 4 * N + n) * C + c
    tl.store(to, tl.sum(first, 0), mask=there)
    tl.store(to + size, tl.sum(second, 0), mask=there)
    if TANGENT:
        tl.store(to + 2 * size, tl.sum(third, 0), mask=there)
        tl.store(to + 3 * size, tl.sum(fourth, 0), mask=there)


@triton.jit(do_not_specialize=["n_constant", "P", "SPANS"])
def _coefficients(
    x,
    sums,
    shift,
    offset,
    moving,
    weight,
    bias,
    out,
    ldx,
    n_constant,
    eps,
    size,
    P,
    G: tl.constexpr,
    J: tl.constexpr,
    SPANS,
    SHIFT: tl.constexpr,
    TANGENT: tl.constexpr,
    MOVING: tl.constexpr,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """The coefficients of one sample's channels, laid out as (group, channel of the group)."""
    n, C = tl.program_id(0).to(tl.int64), G * J
    g, j = tl.arange(0, BG)[:, None], tl.arange(0, BJ)[None, :]
    there, c = (g < G) & (j < J), g * J + j
    pivot = tl.load(x + n * P * ldx + c, mask=there, other=0).to(tl.float32)
    apart = tl.zeros([BG, BJ], tl.float32)
    square = tl.zeros([BG, BJ], tl.float32)
    along = tl.zeros([BG, BJ], tl.float32)
    product = tl.zeros([BG, BJ], tl.float32)
    for start in range(0, SPANS, TOGETHER):
        for s in range(TOGETHER):
            span = tl.full([1, 1], start + s, tl.int32)
            at = sums + span * 4 * size + n * C + c
            here = there & (span < SPANS)
            apart += tl.load(at, mask=here, other=0)
            square += tl.load(at + size, mask=here, other=0)
            if TANGENT:
                along += tl.load(at + 2 * size, mask=here, other=0)
                product += tl.load(at + 3 * size, mask=here, other=0)
    apart, square, along, product = apart / P, square / P, along / P, product / P
    mean = pivot + apart
    moved = tl.zeros([BG, BJ], tl.float32)
    if SHIFT:
        moved = tl.load(shift + n * C + c, mask=there, other=0).to(tl.float32)
        moved += tl.load(offset + c, mask=there, other=0).to(tl.float32)
    mean += moved
    centre = (tl.sum(tl.where(there, mean, 0), 1) / J)[:, None]
    gap = mean - centre
    spread = tl.where(there, square - apart * apart + gap * gap, 0)
    inverse = tl.rsqrt(tl.sum(spread, 1) / J + eps)[:, None]
    factor = inverse * tl.load(weight + c, mask=there, other=0).to(tl.float32)
    origin = centre - moved
    constant = tl.load(bias + c, mask=there, other=0).to(tl.float32) - origin * factor
    to = out + n * C + c
    tl.store(to, factor, mask=there)
    tl.store(to + size, constant, mask=there)
    tl.store(to + 2 * size, origin, mask=there)
    tl.store(to + 3 * size, gap, mask=there)
    tl.store(to + 4 * size, inverse + 0 * factor, mask=there)
    if TANGENT:
        if n >= n_constant:
            product -= (origin - pivot) * along
            own = tl.zeros([BG, BJ], tl.float32)
            if MOVING:
                own = tl.load(moving + (n - n_constant) * C + c, mask=there, other=0).to(tl.float32)
            product += gap * own
            along += own
            q = (tl.sum(tl.where(there, product, 0), 1) / J)[:, None]
            common = (tl.sum(tl.where(there, along, 0), 1) / J)[:, None]
            slope = factor * inverse * inverse * q
            tl.store(to + 5 * size, slope, mask=there)
            tl.store(to + 6 * size, origin * slope + (own - common) * factor, mask=there)


@triton.jit(do_not_specialize=["n_constant", "P"])
def _apply(
    x,
    d,
    kept,
    coefficients,
    y,
    dy,
    ldx,
    ldd,
    n_constant,
    size,
    scale,
    C,
    P,
    SILU: tl.constexpr,
    DROP: tl.constexpr,
    TANGENT: tl.constexpr,
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
    value = tl.load(x + row * ldx + c[None, :], mask=mask, other=0).to(tl.float32)
    h = value * factor + constant
    out = h
    if SILU:
        out = h * tl.sigmoid(h)
    if DROP:
        keep = tl.load(kept + row * C + c[None, :], mask=mask, other=0).to(tl.float32) * scale
        out = out * keep
    tl.store(y + row * C + c[None, :], out, mask=mask)
    if TANGENT:
        if n >= n_constant:
            slope = tl.load(at + 5 * size, mask=c < C, other=0)[None, :]
            rest = tl.load(at + 6 * size, mask=c < C, other=0)[None, :]
            row -= n_constant * P
            moved = tl.load(d + row * ldd + c[None, :], mask=mask, other=0).to(tl.float32)
            moved = moved * factor - value * slope + rest
            if SILU:
                moved = moved * silu_slope(h)
            if DROP:
                moved = moved * keep
            tl.store(dy + row * C + c[None, :], moved, mask=mask)


def grid(x: Tensor, span: int) -> tuple[int, int, int, int]:
    n, c, height, width = x.shape
    return n, c, height * width, triton.cdiv(height * width, span)


def normalise(
    x: Tensor,
    d: Tensor | None,
    shift: Tensor | None,
    offset: Tensor | None,
    moving: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    kept: Tensor | None,
    *,
    groups: int,
    eps: float,
    activate: bool,
    dropout: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As ``reference_ops.normalise``; the coefficients are one tensor."""
    (x, ldx), (n, c, p, spans) = rows(x), grid(x, SUM["SPAN"])
    own, ldd = (x, ldx) if d is None else rows(d)
    n_constant, size = 0 if d is None else n - len(d), n * c
    sums = torch.empty(spans, 4, n, c, device=x.device, dtype=torch.float32)
    out = torch.empty(7, n, c, device=x.device, dtype=torch.float32)
    blocks = triton.cdiv(c, CHANNELS)
    launch(
        _sums,
        (n, blocks, spans),
        x,
        own,
        sums,
        ldx,
        ldd,
        n_constant,
        n,
        p,
        c,
        size,
        TANGENT=d is not None,
        BC=CHANNELS,
        **SUM,
    )
    each = c // groups
    flags = {"SHIFT": shift is not None, "TANGENT": d is not None, "MOVING": moving is not None}
    shift, offset = (weight if a is None else a.contiguous() for a in (shift, offset))
    moving = weight if moving is None else moving.contiguous()
    launch(
        _coefficients,
        (n,),
        x,
        sums,
        shift,
        offset,
        moving,
        weight,
        bias,
        out,
        ldx,
        n_constant,
        eps,
        size,
        p,
        groups,
        each,
        spans,
        BG=triton.next_power_of_2(groups),
        BJ=triton.next_power_of_2(each),
        **flags,
    )
    y = torch.empty_like(x, memory_format=LAST)
    dy = y if d is None else torch.empty_like(own, memory_format=LAST)
    tile = WRITE if d is None else WRITE | {"BP": 16}  # it reads two images and writes two
    launch(
        _apply,
        (n, triton.cdiv(p, tile["BP"]), blocks),
        x,
        own,
        x if kept is None else kept,
        out,
        y,
        dy,
        ldx,
        ldd,
        n_constant,
        size,
        1 / (1 - dropout),
        c,
        p,
        SILU=activate,
        DROP=kept is not None,
        TANGENT=d is not None,
        BC=CHANNELS,
        **tile,
    )
    return y, None if d is None else dy, out[:5]
