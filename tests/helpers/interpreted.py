"""The Triton kernels against the plain functions, by Triton's interpreter or on a GPU: a program.

Run by test_kernels.py; alone, on a GPU: ``python tests/helpers/interpreted.py cuda``.
"""

import itertools
import sys

import torch

from vamf.models import dit
from vamf.models.fast import kernels, reference_ops

DEVICE = sys.argv[1]
LAST = torch.channels_last
SHAPES = [  # images, channels, side, groups, without a tangent
    (3, 16, 8, 4, 1),
    (2, 48, 4, 4, 0),  # channels of a group that are no power of 2
    (2, 160, 18, 5, 1),  # more channels than a program has, and more pixels than a span
]


def draw(*shape, dtype, g):
    x = torch.randn(*shape, generator=g).to(DEVICE, dtype)
    return x.to(memory_format=LAST) if x.ndim == 4 else x


def compare(what, found, expected, dtype):
    bound = 2e-5 if dtype == torch.float32 else 1e-2
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None) == (b is None), (what, place)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape, (what, place, a.dtype, b.dtype)
            if not a.numel():
                continue  # of no samples
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-9)
            assert error < bound, (what, place, error.item())


def normalisation(n, c, side, groups, n_constant, shifted, activate, dropped, dual, dtype):
    g = torch.Generator().manual_seed(0)
    # Far from 0 and of another size in each channel: where sums of squares cancel.
    x = draw(n, c, side, side, dtype=dtype, g=g) * draw(c, 1, 1, dtype=dtype, g=g)
    x = (x + 3 * draw(c, 1, 1, dtype=dtype, g=g)).contiguous(memory_format=LAST)
    d = draw(n - n_constant, c, side, side, dtype=dtype, g=g) if dual else None
    shift, offset = (
        (draw(n, c, dtype=dtype, g=g), draw(c, dtype=dtype, g=g)) if shifted else (None, None)
    )
    moving = draw(n - n_constant, c, dtype=dtype, g=g) if shifted and dual else None
    weight, bias = draw(c, dtype=dtype, g=g), draw(c, dtype=dtype, g=g)
    kept = draw(n, c, side, side, dtype=torch.float32, g=g) > -0.5 if dropped else None
    how = {"groups": groups, "eps": 1e-6, "activate": activate, "dropout": 0.3 if dropped else 0.0}
    given = (x, d, shift, offset, moving, weight, bias, kept)
    found, expected = kernels.normalise(*given, **how), reference_ops.normalise(*given, **how)
    compare("normalise", found[:2], expected[:2], dtype)
    compare("coefficients", found[2:], expected[2:], torch.float32)
    # A slice of the channels of something larger, as a concatenation's gradient is.
    wider = draw(n, c + 8, side, side, dtype=dtype, g=g)[:, 3 : 3 + c]
    other = draw(n, c, side, side, dtype=dtype, g=g)
    for beside in ((), (wider,), (other, wider)):
        given = (wider, beside, x, kept, found[2], weight)
        compare(
            "backward",
            kernels.normalise_backward(*given, **how),
            reference_ops.normalise_backward(*given, **how),
            dtype,
        )


def others(n, c, side, dtype):
    g = torch.Generator().manual_seed(1)
    x, bias = draw(n, c, side, side, dtype=dtype, g=g), draw(c, dtype=dtype, g=g)
    y = draw(n, c + 5, side, side, dtype=dtype, g=g)[:, 2 : 2 + c]
    for b in (bias, None):
        pair = (f(x, y, b, 0.7) for f in (kernels.scaled_sum, reference_ops.scaled_sum))
        compare("scaled_sum", *([a] for a in pair), dtype)
    wider = [torch.zeros_like(draw(n, c + 8, side, side, dtype=dtype, g=g)) for _ in range(2)]
    for f, whole in zip((kernels.scaled_sum, reference_ops.scaled_sum), wider, strict=True):
        f(x, y, bias, 0.7, whole[:, 4 : 4 + c])
    compare("scaled_sum, into a part", wider[:1], wider[1:], dtype)
    both = (kernels.scaled_sum_backward, reference_ops.scaled_sum_backward)
    compare("scaled_sum backward", *(f(y, bias, 0.7) for f in both), dtype)
    for up in (False, True):
        pair = (f(y, 1.5, up=up) for f in (kernels.fir, reference_ops.fir))
        compare("fir", *([a] for a in pair), dtype)


def attention(batch, tokens, dtype):
    g = torch.Generator().manual_seed(2)
    x, d = (draw(batch, 2, tokens, tokens + 3, dtype=dtype, g=g).contiguous() for _ in range(2))
    x = 200 * x  # whose exponentials overflow
    found, expected = (f(x, 0.1) for f in (kernels.softmax, reference_ops.softmax))
    compare("softmax", [found], [expected], dtype)
    both = (kernels.softmax_tangent, reference_ops.softmax_tangent)
    compare("tangent of softmax", *([f(expected, d, 0.1)] for f in both), dtype)


def token_attention(n, tokens, heads, size, n_constant, dtype):
    g = torch.Generator().manual_seed(3)
    qkv, moved, back = (
        draw(k, tokens, c, dtype=dtype, g=g)
        for k, c in (
            (n, 3 * heads * size),
            (n - n_constant, 3 * heads * size),
            (n, heads * size),
        )
    )
    moved = 3 + moved  # what all keys share is no change
    given = qkv.double().requires_grad_()
    expected = dit._mix(given, heads)
    gradient = torch.autograd.grad(expected, given, back.double())[0]
    y, dy, logs = kernels.attend(qkv, moved, heads)
    compare("attend", [y], [expected.to(dtype)], dtype)
    tangent = dit._mix_tangent((given[n_constant:], heads), (moved.double(), heads))
    compare("tangent of attend", [dy], [tangent.to(dtype)], dtype)
    bare, nothing, again = kernels.attend(qkv, None, heads)
    assert nothing is None
    compare("attend without a tangent", [bare, again], [y, logs], dtype)
    found = kernels.attend_backward(qkv, y, logs, back, heads)
    compare("attend backward", [found], [gradient.to(dtype)], dtype)
    assert torch.equal(found, kernels.attend_backward(qkv, y, logs, back, heads))


CASES = [(True, True, True, True), (False, True, False, True), (True, True, False, False)]
CASES += [(False, False, False, True)]
for shape, case in itertools.product(SHAPES, CASES):
    normalisation(*shape, *case, torch.float32)
normalisation(*SHAPES[0], *CASES[0], torch.bfloat16)
for n, c, side, *_ in SHAPES:
    others(n, c, side, torch.float32)
others(*SHAPES[0][:3], torch.bfloat16)
for tokens in (1, 16, 60):
    attention(3, tokens, torch.float32)
attention(3, 16, torch.bfloat16)
for case in ((3, 20, 2, 8, 1), (2, 64, 1, 64, 0), (2, 130, 1, 72, 1), (1, 20, 1, 8, 1)):
    token_attention(*case, torch.float32)
    if DEVICE == "cuda":  # the interpreter has no products of bfloat16
        token_attention(*case, torch.bfloat16)
print("the kernels agree")
