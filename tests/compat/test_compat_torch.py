"""The private operations of torch exist and compute what their public counterparts compute."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from vamf.compat import torch as compat


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_lerp_all_moves_every_tensor():
    tensors, ends = [randn(3), randn(2, 2)], [torch.ones(3).double(), torch.ones(2, 2).double()]
    expected = [a.lerp(b, 0.25) for a, b in zip(tensors, ends, strict=True)]
    compat.lerp_all_(tensors, ends, 0.25)
    for tensor, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor, wanted)


def test_group_norm_and_its_gradient_are_torchs():
    x, gradient = randn(2, 4, 3, 3).requires_grad_(), randn(2, 4, 3, 3) ** 2
    weight, bias = torch.ones(4).double(), torch.zeros(4).double()
    y, mean, inverse = compat.group_norm_moments(x.detach(), weight, bias, 2, 1e-6)
    expected = functional.group_norm(x, 2, weight, bias, 1e-6)
    torch.testing.assert_close(y, expected.detach())
    assert mean.shape == inverse.shape == (2, 2)
    found = compat.group_norm_gradient(gradient, x.detach(), mean, inverse, 2)
    torch.testing.assert_close(found, torch.autograd.grad(expected, x, gradient)[0])


def test_silu_gradient_is_torchs():
    x, gradient = randn(5).requires_grad_(), randn(5) + 1
    (expected,) = torch.autograd.grad(functional.silu(x), x, gradient)
    torch.testing.assert_close(compat.silu_gradient(gradient, x.detach()), expected)


def test_copy_all_copies_every_tensor():
    to, tensors = [torch.zeros(3).double(), torch.zeros(2, 2)], [randn(3), randn(2, 2)]
    compat.copy_all_(to, tensors)
    assert torch.equal(to[0], tensors[0]) and torch.equal(to[1], tensors[1].float())


def test_add_all_adds_every_tensor():
    to, tensors = [torch.ones(3).double(), torch.ones(2, 2)], [randn(3), randn(2, 2)]
    compat.add_all_(to, tensors)
    assert torch.equal(to[0], 1 + tensors[0]) and torch.equal(to[1], 1 + tensors[1].float())


def test_recompilations_are_allowed_and_never_fewer():
    from torch.compiler import config

    before = config.recompile_limit
    try:
        compat.allow_recompilations(before + 7)
        compat.allow_recompilations(1)
        assert config.recompile_limit == before + 7
    finally:
        config.recompile_limit = before


def test_trees_are_walked_in_one_order():
    tree = {"b": [torch.ones(1), 2], "a": (torch.zeros(1),)}
    found = compat.leaves(tree)
    assert [type(leaf).__name__ for leaf in found] == ["Tensor", "int", "Tensor"]
    assert [name for name, _ in compat.named_leaves(tree)] == ["['b'][0]", "['b'][1]", "['a'][0]"]
    doubled = compat.map_tensors(lambda tensor: tensor * 2, tree)
    assert doubled["b"] == [torch.full((1,), 2.0), 2] and doubled["a"] == (torch.zeros(1),)


def test_rules_of_forward_mode_are_loaded_without_a_warning():
    code = "import sys; from vamf.compat.torch import load_jvp_rules; load_jvp_rules(); "
    code += "print('torch._decomp.decompositions_for_jvp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("True\n", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_convolution_is_written_into_its_place():
    conv = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False).cuda()
    x = torch.randn(2, 4, 8, 8, device="cuda")
    out = torch.empty(2, 8, 8, 8, device="cuda")
    with torch.no_grad():
        compat.cudnn_convolution_into(out, x, conv)
        torch.testing.assert_close(out, conv(x))
