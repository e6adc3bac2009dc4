"""The groups of ``vamf.models.fused`` as Triton kernels, for images that have channels last.

Each is computed in float32 and rounded once. Images are read as rows, one a pixel, so that a slice
of the channels of a larger image will do.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS, PIXELS, SUMMED, SPAN = 128, 32, 16, 256
"""A program handles so many channels, so many pixels at a time, fewer in a sum over a span."""
NARROW = 32
"""Channels that a program sums over rows, and rows at a time."""
LAST = torch.channels_last


@triton.jit
def _silu_slope(h):
    p = tl.sigmoid(h)
    return p * (1 + h * (1 - p))


@triton.jit(do_not_specialize=["still", "N"])
def _sums(
    x,
    d,
    out,
    ldx,
    ldd,
    still,
    N,
    P: tl.constexpr,
    C,
    size,
    TANGENT: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Over a span of pixels: of x - pivot and its square, of d and its product with x - pivot."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    there = c < C
    pivot = tl.load(x + n * P * ldx + c, mask=there, other=0).to(tl.float32)
    first = tl.zeros([BP, BC], tl.float32)  # tiles, which are summed once at the end
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
            if n >= still:
                at = d + ((n - still) * P + p[:, None]) * ldd + c[None, :]
                moved = tl.load(at, mask=mask, other=0).to(tl.float32)
                third += moved
                fourth += moved * apart
    to = out + (s * 4 * N + n) * C + c
    tl.store(to, tl.sum(first, 0), mask=there)
    tl.store(to + size, tl.sum(second, 0), mask=there)
    if TANGENT:
        tl.store(to + 2 * size, tl.sum(third, 0), mask=there)
        tl.store(to + 3 * size, tl.sum(fourth, 0), mask=there)


@triton.jit(do_not_specialize=["still"])
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
    still,
    eps,
    size,
    P: tl.constexpr,
    G: tl.constexpr,
    J: tl.constexpr,
    SPANS: tl.constexpr,
    SHIFT: tl.constexpr,
    TANGENT: tl.constexpr,
    MOVING: tl.constexpr,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Of one sample, per channel, laid out as (group, channel of the group)."""
    n, C = tl.program_id(0).to(tl.int64), G * J
    g, j = tl.arange(0, BG)[:, None], tl.arange(0, BJ)[None, :]
    there, c = (g < G) & (j < J), g * J + j
    pivot = tl.load(x + n * P * ldx + c, mask=there, other=0).to(tl.float32)
    apart = tl.zeros([BG, BJ], tl.float32)
    square = tl.zeros([BG, BJ], tl.float32)
    along = tl.zeros([BG, BJ], tl.float32)
    product = tl.zeros([BG, BJ], tl.float32)
    for s in range(SPANS):
        at = sums + s * 4 * size + n * C + c
        apart += tl.load(at, mask=there, other=0)
        square += tl.load(at + size, mask=there, other=0)
        if TANGENT:
            along += tl.load(at + 2 * size, mask=there, other=0)
            product += tl.load(at + 3 * size, mask=there, other=0)
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
        if n >= still:
            product -= (origin - pivot) * along
            own = tl.zeros([BG, BJ], tl.float32)
            if MOVING:
                own = tl.load(moving + (n - still) * C + c, mask=there, other=0).to(tl.float32)
            product += gap * own
            along += own
            q = (tl.sum(tl.where(there, product, 0), 1) / J)[:, None]
            common = (tl.sum(tl.where(there, along, 0), 1) / J)[:, None]
            slope = factor * inverse * inverse * q
            tl.store(to + 5 * size, slope, mask=there)
            tl.store(to + 6 * size, origin * slope + (own - common) * factor, mask=there)


@triton.jit(do_not_specialize=["still"])
def _apply(
    x,
    d,
    kept,
    coefficients,
    y,
    dy,
    ldx,
    ldd,
    still,
    size,
    scale,
    C,
    P: tl.constexpr,
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
        if n >= still:
            slope = tl.load(at + 5 * size, mask=c < C, other=0)[None, :]
            rest = tl.load(at + 6 * size, mask=c < C, other=0)[None, :]
            row -= still * P
            moved = tl.load(d + row * ldd + c[None, :], mask=mask, other=0).to(tl.float32)
            moved = moved * factor - value * slope + rest
            if SILU:
                moved = moved * _silu_slope(h)
            if DROP:
                moved = moved * keep
            tl.store(dy + row * C + c[None, :], moved, mask=mask)


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
        back *= _silu_slope(value * factor + constant)
    return back, value


@triton.jit(do_not_specialize=["N"])
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
    P: tl.constexpr,
    SILU: tl.constexpr,
    DROP: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Over a span of pixels: of the gradient, and of its product with x - origin."""
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


@triton.jit(do_not_specialize=["M"])
def _total(x, first, second, third, M, C, BC: tl.constexpr, BP: tl.constexpr):
    """The sums of up to three tables over their rows."""
    k, c = tl.program_id(1), tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros([BP, BC], tl.float32)
    for start in range(0, M, BP):
        row = (start + tl.arange(0, BP))[:, None]
        at = x + (k * M + row) * C + c[None, :]
        total += tl.load(at, mask=(row < M) & (c < C)[None, :], other=0)
    if k == 0:
        tl.store(first + c, tl.sum(total, 0), mask=c < C)
    if k == 1:
        tl.store(second + c, tl.sum(total, 0), mask=c < C)
    if k == 2:
        tl.store(third + c, tl.sum(total, 0), mask=c < C)


@triton.jit
def _coefficients_backward(
    sums,
    coefficients,
    weight,
    out,
    gshift,
    size,
    P: tl.constexpr,
    G: tl.constexpr,
    J: tl.constexpr,
    SPANS: tl.constexpr,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    n, C = tl.program_id(0).to(tl.int64), G * J
    g, j = tl.arange(0, BG)[:, None], tl.arange(0, BJ)[None, :]
    there, c = (g < G) & (j < J), g * J + j
    alone = tl.zeros([BG, BJ], tl.float32)
    product = tl.zeros([BG, BJ], tl.float32)
    for s in range(SPANS):
        at = sums + s * 2 * size + n * C + c
        alone += tl.load(at, mask=there, other=0)
        product += tl.load(at + size, mask=there, other=0)
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


@triton.jit
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
    P: tl.constexpr,
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


def rows(x: Tensor) -> tuple[Tensor, int]:
    """The same images with channels last, and how far apart their pixels are in memory."""
    _, _, height, width = x.shape
    apart = x.stride(3)
    if x.stride() != (height * width * apart, 1, width * apart, apart):
        x = x.contiguous(memory_format=LAST)
        apart = x.shape[1]
    return x, apart


def _grid(x: Tensor) -> tuple[int, int, int, int]:
    n, c, height, width = x.shape
    return n, c, height * width, triton.cdiv(height * width, SPAN)


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
    """As ``plain.normalise``; the last are its coefficients in one tensor."""
    (x, ldx), (n, c, p, spans) = rows(x), _grid(x)
    own, ldd = (x, ldx) if d is None else rows(d)
    still, size = 0 if d is None else n - len(d), n * c
    sums = torch.empty(spans, 4, n, c, device=x.device, dtype=torch.float32)
    out = torch.empty(7, n, c, device=x.device, dtype=torch.float32)
    blocks = triton.cdiv(c, CHANNELS)
    tile = {"BC": CHANNELS, "BP": PIXELS}
    _sums[n, blocks, spans](
        x,
        own,
        sums,
        ldx,
        ldd,
        still,
        n,
        p,
        c,
        size,
        TANGENT=d is not None,
        SPAN=SPAN,
        BC=CHANNELS,
        BP=SUMMED,
    )
    each = c // groups
    flags = {"SHIFT": shift is not None, "TANGENT": d is not None, "MOVING": moving is not None}
    shift, offset = (weight if a is None else a.contiguous() for a in (shift, offset))
    moving = weight if moving is None else moving.contiguous()
    _coefficients[n,](
        x,
        sums,
        shift,
        offset,
        moving,
        weight,
        bias,
        out,
        ldx,
        still,
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
    _apply[n, triton.cdiv(p, PIXELS), blocks](
        x,
        own,
        x if kept is None else kept,
        out,
        y,
        dy,
        ldx,
        ldd,
        still,
        size,
        1 / (1 - dropout),
        c,
        p,
        SILU=activate,
        DROP=kept is not None,
        TANGENT=d is not None,
        **tile,
    )
    return y, None if d is None else dy, out[:5]


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
    """As ``plain.normalise_backward``."""
    (g, ldg), (x, ldx), (n, c, p, spans) = rows(g), rows(x), _grid(x)
    (more, ldm), (others, ldo) = [rows(b) for b in (*beside, x, x)][:2]
    size, scale, blocks = n * c, 1 / (1 - dropout), triton.cdiv(c, CHANNELS)
    sums = torch.empty(spans, 2, n, c, device=x.device, dtype=torch.float32)
    slopes = torch.empty(5, n, c, device=x.device, dtype=torch.float32)
    mask = x if kept is None else kept
    flags = {"SILU": activate, "DROP": kept is not None, "BC": CHANNELS}
    _sums_backward[n, blocks, spans](
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
        SPAN=SPAN,
        BP=SUMMED,
        **flags,
    )
    each, gshift = c // groups, torch.empty(n, c, device=x.device, dtype=weight.dtype)
    _coefficients_backward[n,](
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
    _apply_backward[n, triton.cdiv(p, PIXELS), blocks](
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
        BP=PIXELS,
        **flags,
    )
    totals = torch.empty(3, c, device=x.device, dtype=weight.dtype)
    _total[triton.cdiv(c, NARROW), 3](slopes, *totals, n, c, BC=NARROW, BP=NARROW)
    gb, gw, goffset = totals
    return gx, gshift, goffset, gw, gb


@triton.jit
def _halfway(
    x, y, bias, out, ldx, ldy, M, C, half, BIAS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr
):
    row = (tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP))[:, None]
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < M) & (c < C)[None, :]
    total = tl.load(x + row * ldx + c[None, :], mask=mask, other=0).to(tl.float32)
    total += tl.load(y + row * ldy + c[None, :], mask=mask, other=0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + c, mask=c < C, other=0).to(tl.float32)[None, :]
    tl.store(out + row * C + c[None, :], total * half, mask=mask)


@triton.jit
def _halfway_backward(
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


def halfway(x: Tensor, y: Tensor, bias: Tensor | None, half: float) -> Tensor:
    """(x + y + bias) half."""
    (x, ldx), (y, ldy), c = rows(x), rows(y), x.shape[1]
    out, m = torch.empty_like(x, memory_format=LAST), x.numel() // c
    _halfway[triton.cdiv(m, PIXELS), triton.cdiv(c, CHANNELS)](
        x,
        y,
        x if bias is None else bias,
        out,
        ldx,
        ldy,
        m,
        c,
        half,
        BIAS=bias is not None,
        BC=CHANNELS,
        BP=PIXELS,
    )
    return out


def halfway_backward(g: Tensor, bias: Tensor | None, half: float) -> tuple[Tensor, Tensor | None]:
    """half g, and its sum over images and pixels."""
    (g, ldg), c = rows(g), g.shape[1]
    out, m = torch.empty_like(g, memory_format=LAST), g.numel() // c
    spans = triton.cdiv(m, SPAN)
    sums = torch.empty(spans, c, device=g.device, dtype=torch.float32)
    _halfway_backward[spans, triton.cdiv(c, CHANNELS)](
        g, out, sums, ldg, m, c, half, BIAS=bias is not None, SPAN=SPAN, BC=CHANNELS, BP=SUMMED
    )
    if bias is None:
        return out, None
    total = torch.empty_like(bias)
    _total[triton.cdiv(c, NARROW), 1](sums, total, total, total, spans, c, BC=NARROW, BP=NARROW)
    return out, total


@triton.jit
def _fir(
    x,
    out,
    ldx,
    C,
    gain,
    H: tl.constexpr,
    W: tl.constexpr,
    UP: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """H and W are those of what is written."""
    n, c = tl.program_id(0).to(tl.int64), tl.program_id(2) * BC + tl.arange(0, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    i, j = p // W, p % W
    total = tl.zeros([BP, BC], tl.float32)
    taps: tl.constexpr = 2 if UP else 4
    h: tl.constexpr = H // 2 if UP else H * 2
    w: tl.constexpr = W // 2 if UP else W * 2
    for a in tl.static_range(taps):
        for b in tl.static_range(taps):
            if UP:  # an even place has 1/4 of the one before and 3/4 of its own
                k, m = (i + 1) // 2 - 1 + a, (j + 1) // 2 - 1 + b
                down = tl.where((i % 2 == 0) == (a == 0), 0.25, 0.75)
                across = tl.where((j % 2 == 0) == (b == 0), 0.25, 0.75)
            else:
                k, m = 2 * i - 1 + a, 2 * j - 1 + b
                down = 0.125 if (a == 0 or a == 3) else 0.375
                across = 0.125 if (b == 0 or b == 3) else 0.375
            inside = (k >= 0) & (k < h) & (m >= 0) & (m < w) & (p < H * W)
            mask = inside[:, None] & (c < C)[None, :]
            at = x + (n * h * w + (k * w + m)[:, None]) * ldx + c[None, :]
            value = tl.load(at, mask=mask, other=0).to(tl.float32)
            if UP:
                total += value * (down * across)[:, None]
            else:
                total += value * (down * across)
    mask = (p < H * W)[:, None] & (c < C)[None, :]
    tl.store(out + (n * H * W + p[:, None]) * C + c[None, :], total * gain, mask=mask)


def fir(x: Tensor, gain: float, *, up: bool) -> Tensor:
    """As ``plain.fir``."""
    (x, ldx), (n, c, height, width) = rows(x), x.shape
    height, width = (2 * height, 2 * width) if up else (height // 2, width // 2)
    shape = (n, c, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)
    _fir[n, triton.cdiv(height * width, PIXELS), triton.cdiv(c, CHANNELS)](
        x, out, ldx, c, gain, height, width, up, BC=CHANNELS, BP=PIXELS
    )
    return out
