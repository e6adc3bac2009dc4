"""Triton's kernels agree with the reference operations, which have torch's derivatives."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from helpers.tree import HELPERS, ROOT

from vamf.flow.duals import Dual
from vamf.models.fast import fused
from vamf.rng import generator

PROGRAM = HELPERS / "interpreted.py"


triton_only = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")


def release(package):
    return tuple(map(int, import_module(package).__version__.split(".")[:2]))


@triton_only
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
        ),
    ],
)
@pytest.mark.slow  # Triton's interpreter
def test_the_kernels_agree_with_the_plain_functions(device):
    """In a separate process: Triton reads the setting of its interpreter when it is imported."""
    if device == "cpu" and release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("Triton < 3.7 interprets no loops with NumPy >= 2.4 (triton-lang/triton #9171)")
    interpreted = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, PROGRAM, device],
        env=os.environ | interpreted,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the kernels agree" in done.stdout


NORM = {"SILU": True, "DROP": True, "BC": 128}
KERNELS = [  # with the values that are known when it is compiled
    ("attention._softmax", {"BP": 4, "BC": 256}),
    ("attention._softmax_tangent", {"BP": 4, "BC": 256}),
    ("normalisation._sums", {"TANGENT": True, "SPAN": 256, "BC": 128, "BP": 16}),
    (
        "normalisation._coefficients",
        {"SHIFT": True, "TANGENT": True, "MOVING": True} | {"G": 32, "J": 6, "BG": 32, "BJ": 8},
    ),
    ("normalisation._apply", NORM | {"TANGENT": True, "BP": 32}),
    ("normalisation_backward._sums_backward", NORM | {"SPAN": 256, "BP": 16}),
    ("normalisation_backward._coefficients_backward", {"G": 32, "J": 6, "BG": 32, "BJ": 8}),
    ("normalisation_backward._apply_backward", NORM | {"BESIDE": 2, "BP": 32}),
    ("rows.add_up", {"BC": 32, "BP": 32}),
    ("residual._scaled_sum", {"BIAS": True, "BC": 128, "BP": 32}),
    ("residual._scaled_sum_backward", {"BIAS": True, "SPAN": 256, "BC": 128, "BP": 16}),
    ("token_attention._attend", {"D": 64, "BD": 64, "BQ": 64, "BK": 64, "TANGENT": True}),
    ("token_attention._attend", {"D": 72, "BD": 128, "BQ": 64, "BK": 64, "TANGENT": False}),
    ("token_attention._queries_backward", {"D": 72, "BD": 128, "BQ": 64, "BK": 64}),
    ("token_attention._keys_backward", {"D": 72, "BD": 128, "BQ": 64, "BK": 64}),
    ("resampling._fir", {"H": 32, "W": 32, "UP": True, "BC": 128, "BP": 32}),
    ("resampling._fir", {"H": 16, "W": 16, "UP": False, "BC": 128, "BP": 32}),
]
INTEGERS = {"ldx", "ldd", "ldy", "ldg", "ldm", "ldo", "n_constant", "size"}
INTEGERS |= {"N", "C", "M", "H", "P", "SPANS"}
NUMBERS = {"eps", "scale", "half", "gain"}


@pytest.mark.slow
@triton_only
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability, tmp_path, monkeypatch):
    """To machine code of an A100 and of an H100: the interpreter forgives more than a compiler."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, known in KERNELS:
        module, kernel = name.split(".")
        function = getattr(import_module(f"vamf.models.fast.kernels.{module}"), kernel)
        types = {p.name: "*bf16" for p in function.params}
        types |= dict.fromkeys(INTEGERS & {*types}, "i32") | dict.fromkeys(
            NUMBERS & {*types}, "fp32"
        )
        source = ASTSource(function, types | dict.fromkeys(known, "constexpr"), known)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


@triton_only
def test_kernels_are_not_specialised_for_parameters_that_they_have():
    """Triton ignores other names: a kernel would be compiled for more numbers than need be."""
    for name, _ in KERNELS:
        module, kernel = name.split(".")
        function = getattr(import_module(f"vamf.models.fast.kernels.{module}"), kernel)
        assert {*function.do_not_specialize} <= {p.name for p in function.params}, name


def normal(*shape, key=0):
    g = generator("kernels", key, *shape)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


HOW = fused.Normalisation(groups=2, eps=1e-6, activate=True, dropout=0.0)


def plainly(x, shift, offset, weight, bias):
    shifted = x + (shift + offset)[:, :, None, None]
    normed = torch.nn.functional.group_norm(shifted, HOW.groups, weight, bias, HOW.eps)
    return torch.nn.functional.silu(normed)


@pytest.mark.parametrize("mean", [0, 50])
def test_normalisation_has_torchs_value_gradient_and_tangent(mean):
    x, shift, offset = normal(3, 6, 4, 5) + mean, normal(3, 6), normal(6, key=1)
    weight, bias = normal(6, key=2), normal(6, key=3)
    given, directions = (
        (x, shift, offset, weight, bias),
        (normal(3, 6, 4, 5, key=1), normal(3, 6, key=1)),
    )
    value, copy = fused.normalise(x, shift, offset, weight, bias, HOW, copies=1)
    expected = plainly(*given)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    # The copy's gradient is added to the other.
    slopes = [
        torch.autograd.grad(out.sin().sum(), given)
        for out in (value + 0.3 * copy, expected + 0.3 * x)
    ]
    for mine, torchs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-8, atol=1e-9)
    moved = torch.func.jvp(lambda a, b: plainly(a, b, *given[2:]), (x, shift), directions)[1]
    last = [d[1:].detach() for d in directions]
    dual, _ = fused.normalise(
        Dual(x, last[0]), Dual(shift, last[1]), offset, weight, bias, HOW, copies=1
    )
    torch.testing.assert_close(dual.tangent, moved[1:].detach(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("up", [False, True])
def test_resampling_and_residuals_have_their_gradients(up):
    x, y, bias = normal(2, 3, 4, 6), normal(2, 3, 4, 6, key=1), normal(3)
    assert torch.autograd.gradcheck(lambda a: fused.resample(a, up=up), x)
    assert torch.autograd.gradcheck(fused.residual, (x, y, bias))
    flat = torch.ones(1, 1, 4, 6, dtype=torch.float64)
    inner = fused.resample(flat, up=up)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.ones_like(inner))  # means are kept


def test_float32_keeps_small_differences_of_large_numbers():
    """Numbers at 300 with a deviation of 1: E[x^2] - E[x]^2 would be wrong by 2 %."""
    x, ones = 300 + normal(2, 8, 16, 16).detach(), torch.ones(8, dtype=torch.float64)
    exact, found = (
        fused.normalise(x.to(dtype), None, None, ones.to(dtype), 0 * ones.to(dtype), HOW)[0]
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-4)
