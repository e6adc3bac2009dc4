"""Attention between pixels is attention, and its derivatives are torch's."""

import pytest
import torch

from vamf.flow.duals import Dual, dual_mode
from vamf.models import dit
from vamf.models.fast.attention import between_pixels, has_kernel
from vamf.models.layers import attend
from vamf.rng import generator

WIDTH = 12
"""Channels of an image, of which q, k and v have as many each."""


def images(n: int, *, key: int = 0) -> torch.Tensor:
    g = generator("attention", key)
    drawn = torch.randn(n, 3 * WIDTH, 3, 5, generator=g, dtype=torch.float64)
    return drawn.to(memory_format=torch.channels_last)


def plainly(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    b, _, h, w = qkv.shape
    q, k, v = qkv.reshape(b, 3, heads, WIDTH // heads, h * w).unbind(1)
    pixels = attend(*(part.transpose(2, 3) for part in (q, k, v)))
    return pixels.transpose(2, 3).reshape(b, WIDTH, h, w)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("n_constant", [0, 1, 4])
def test_value_tangent_and_gradient_are_those_of_the_plain_operations(heads, n_constant):
    """The tangent is of the last images only, and changes no gradient."""
    qkv, d = images(4).requires_grad_(), images(4 - n_constant, key=1)
    found = between_pixels(Dual(qkv, d), heads)
    expected = plainly(qkv, heads)
    moved = torch.func.jvp(lambda x: plainly(x, heads), (qkv[n_constant:].detach(),), (d,))[1]
    torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.tangent, moved, rtol=1e-12, atol=1e-12)
    assert not found.tangent.requires_grad
    slopes = [torch.autograd.grad(out.sin().sum(), qkv)[0] for out in (found.value, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2])
def test_without_a_tangent_it_has_the_gradient_that_differences_have(heads):
    qkv = images(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: between_pixels(x, heads), qkv)


def test_logits_beyond_the_exponentials_range_are_compared_all_the_same():
    qkv = 40 * images(2)
    assert between_pixels(qkv.requires_grad_(), 1).isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bfloat16_rounds_and_no_more(device):
    """Value, tangent and gradient against float64's of the same numbers, within a few roundings."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    exact, d = images(3).bfloat16().double(), images(3, key=1).bfloat16().double()
    back, results = images(3, key=2)[:, :WIDTH].bfloat16(), []
    for dtype in (torch.bfloat16, torch.float64):
        qkv, moved = (x.to(device, dtype).requires_grad_() for x in (exact, d))
        out = between_pixels(Dual(qkv, moved.detach()), 1)
        out.value.backward(back.to(device, dtype))
        results.append([part.double().cpu() for part in (out.value, out.tangent, qkv.grad)])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 2e-2 * expected.norm()


def test_tokens_have_a_kernel_in_bfloat16_on_a_gpu_only():
    tokens = torch.zeros(1, 4, 3 * 2 * 8)
    assert not has_kernel(tokens, 2) and not has_kernel(tokens.bfloat16(), 2)
    if torch.cuda.is_available():
        assert has_kernel(tokens.bfloat16().cuda(), 2)
        assert not has_kernel(tokens.cuda(), 2)
        assert not has_kernel(torch.zeros(1, 4, 3 * 256, device="cuda").bfloat16(), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("n_constant", [0, 1, 3])
@pytest.mark.parametrize(("tokens", "heads", "size"), [(64, 12, 64), (256, 2, 72), (300, 1, 128)])
def test_tokens_attend_as_in_float64_in_linear_memory(n_constant, tokens, heads, size):
    """Value, tangent and gradient by the kernel, and plainly from the same numbers."""
    g = generator("tokens")
    exact = torch.randn(3, tokens, 3 * heads * size, generator=g).bfloat16().double()
    d, back = torch.randn_like(exact[n_constant:]), torch.randn_like(exact[..., : heads * size])
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        qkv, moved = (x.to("cuda", dtype).requires_grad_() for x in (exact, d.bfloat16()))
        with dual_mode():
            out = dit._mixed(Dual(qkv, moved.detach()), heads)
            alone = dit._mixed(qkv, heads)
        out.value.backward(back.bfloat16().to("cuda", dtype))
        assert not out.tangent.requires_grad
        results.append([p.double().cpu() for p in (out.value, alone, out.tangent, qkv.grad)])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-2 * expected.norm()
