"""Launches kernels, or compiles several at a time, before any of them is needed."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

Kernel = Any
"""What ``triton.jit`` returns."""


class _Address:
    """The address and type of a tensor, which are all that Triton compiles for."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self._address = tensor.dtype, tensor.data_ptr()

    def data_ptr(self) -> int:
        return self._address


class _Compilation:
    """Compiles each kernel once for each kind of its arguments, by several threads."""

    def __init__(self, threads: int, device: torch.device) -> None:
        start = None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            start = partial(torch.cuda.set_device, index)
        self._pool = ThreadPoolExecutor(threads, initializer=start)
        self._found: dict[tuple, Future[None]] = {}

    def add(self, kernel: Kernel, arguments: tuple, constants: dict[str, Any]) -> None:
        kinds = map(_kind, arguments, kernel.params)
        kind = (id(kernel), *kinds, *sorted(constants.items()))
        if kind in self._found:
            return
        given = [_Address(a) if isinstance(a, Tensor) else a for a in arguments]
        self._found[kind] = self._pool.submit(_compile, kernel, given, constants)
        if len(self._found) == 1:
            self.wait()  # it reads Triton's own files, which all threads would do at once

    def wait(self) -> None:
        """Raises what a compilation raised."""
        for future in self._found.values():
            future.result()

    def end(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _compile(kernel: Kernel, arguments: list[Any], constants: dict[str, Any]) -> None:
    compiled = kernel.warmup(*arguments, grid=(1,), **constants)
    compiled.run  # noqa: B018 builds what launches it, and loads it


def _kind(argument: Any, parameter: Any) -> tuple:
    """What Triton compiles for, or finer: all that steps need is compiled, nothing twice at once.

    ``parameter`` is Triton's description of the kernel's parameter.
    """
    if parameter.is_constexpr:
        return type(argument), argument
    match argument:
        case Tensor():
            return argument.dtype, argument.data_ptr() % 16
        case int():
            long = argument.bit_length() > 31
            if parameter.do_not_specialize:
                return int, long
            return int, argument == 1, argument % 16 == 0, long
    return (type(argument),)


_compilation: _Compilation | None = None  # of the process: autograd's threads launch kernels, too


def launch(kernel: Kernel, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a Triton kernel; within ``compiling_ahead`` it is compiled instead."""
    if _compilation is None:
        kernel[grid](*arguments, **constants)
    else:
        _compilation.add(kernel, arguments, constants)


@contextmanager
def compiling_ahead(threads: int, device: torch.device) -> Iterator[None]:
    """Within the block kernels are compiled by ``threads`` threads, and do not run.

    What they would write has arbitrary values, also in this process's other threads. Returns when
    all are compiled; raises what a compilation raised.
    """
    global _compilation
    _compilation = _Compilation(threads, device)
    try:
        yield
        _compilation.wait()
    finally:
        _compilation.end()
        _compilation = None
