"""Kernels are launched, or compiled several at a time before they are needed."""

import threading
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("Triton is not installed here", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from vamf.models.fast.kernels.launch import compiling_ahead, launch

CPU = torch.device("cpu")


@triton.jit(do_not_specialize=["N"])
def _scale(x, N, C, scale, P: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < N * P
    tl.store(x + at * C, tl.load(x + at * C, mask=there) * scale, mask=there)


class Kernel:
    """Stands for a kernel of Triton; notes how it is called."""

    def __init__(self, together=1, error=None):
        self.launched, self.compiled, self.error = [], [], error
        self.all_here = threading.Barrier(together)
        self.params = _scale.params[0], _scale.params[2]  # x, and an integer

    def __getitem__(self, grid):
        return lambda *given, **constants: self.launched.append((grid, given, constants))

    def warmup(self, *given, grid, **constants):
        self.all_here.wait(30)  # for as many threads
        if self.error:
            raise self.error
        self.compiled.append((given, constants))
        return self

    @property
    def run(self):
        """What launches it."""


def test_a_kernel_is_launched():
    kernel, x = Kernel(), torch.zeros(2)
    launch(kernel, (4, 5), x, 3, BLOCK=16, num_warps=2)
    assert kernel.launched == [((4, 5), (x, 3), {"BLOCK": 16, "num_warps": 2})]
    assert not kernel.compiled


def test_each_kind_is_compiled_once_several_at_a_time_and_nothing_is_launched():
    """Kinds as Triton has them: types, addresses by 16, integers that are 1, by 16, or long."""
    x = torch.zeros(64, dtype=torch.bfloat16)
    kinds = [
        ((x, 3), 16),
        ((x, 3), 32),
        ((x.float(), 3), 16),
        ((x[1:], 3), 16),
        ((x, 1), 16),
        ((x, 32), 16),
        ((x, 2**40 + 1), 16),
        ((x, 3.0), 16),
    ]
    first, kernel = Kernel(), Kernel(together=len(kinds))
    with compiling_ahead(len(kinds), CPU):
        launch(first, (1,))
        for given, block in kinds:
            launch(kernel, (1,), *given, BLOCK=block)
        launch(kernel, (2,), x[8:], 5, BLOCK=16)  # as the first
    assert len(kernel.compiled) == len(kinds) and not kernel.launched
    addresses = {given[0].data_ptr() % 16 for given, _ in kernel.compiled}
    assert addresses == {x.data_ptr() % 16, x[1:].data_ptr() % 16}
    launch(kernel, (1,), x, 3, BLOCK=16)
    assert len(kernel.launched) == 1


class Driver:
    """An H100 that is not here."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def test_kinds_are_those_that_triton_compiles(tmp_path, monkeypatch):
    """What is not compiled ahead would be compiled within a step, and what is twice, for nothing.

    Triton distinguishes types, addresses by 16, integers that are 1, by 16, or long, and values of
    constants, by position or by name.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.zeros(64, dtype=torch.bfloat16)
    given = [(x, 5, 32, 0.5, 784)]
    given += [(x, n, 32, 0.5, 784) for n in (1, 16, 33)]  # as the first
    given += [(x[8:], 5, 48, 2.0, 784), (x, 2**40, 32, 0.5, 784), (x, 5, 32, 0.5, 196)]
    given += [(x, 5, 32, 0.5, 256), (x, 5, 1, 0.5, 784), (x, 5, 33, 0.5, 784)]
    given += [(x[1:], 5, 32, 0.5, 784), (x.float(), 5, 32, 0.5, 784)]
    warm_ups, warmup = [], _scale.warmup

    def counted(*arguments, **constants):
        warm_ups.append(arguments)
        return warmup(*arguments, **constants)

    monkeypatch.setattr(_scale, "warmup", counted)
    monkeypatch.setattr(triton.compiler.CompiledKernel, "run", None)  # would load it
    monkeypatch.setattr(driver, "_active", Driver())
    with compiling_ahead(2, CPU):
        for arguments in given:
            launch(_scale, (1,), *arguments, BLOCK=32)
        launch(_scale, (1,), *given[0], BLOCK=64)
    compiled = len(_scale.device_caches[0][0])
    for arguments in given:
        warmup(*arguments, grid=(1,), BLOCK=32)
    assert len(_scale.device_caches[0][0]) == compiled == len(warm_ups) == 9


@pytest.mark.parametrize("fails", ["compiling", "the pass"])
def test_an_error_is_raised_and_later_kernels_are_launched(fails):
    kernel = Kernel(error=ValueError("compiling") if fails == "compiling" else None)
    with pytest.raises(ValueError, match=fails), compiling_ahead(1, CPU):
        launch(Kernel(), (1,))
        launch(kernel, (1,), 3)
        if fails == "the pass":
            raise ValueError(fails)
    launch(kernel, (1,), 3)
    assert len(kernel.launched) == 1
