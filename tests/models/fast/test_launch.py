"""Kernels are launched, or compiled several at a time before they are needed."""

import threading
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("Triton is not installed here", allow_module_level=True)

from vamf.models.fast.kernels.launch import compiling_ahead, launch

CPU = torch.device("cpu")


class Kernel:
    """Stands for a kernel of Triton; notes how it is called."""

    def __init__(self, together=1, error=None):
        self.launched, self.compiled, self.error = [], [], error
        self.all_here = threading.Barrier(together)

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
