"""Replays a function of tensors as a CUDA graph, all of whose kernels are launched at once."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from vamf.compat.torch import copy_all_, leaves, map_tensors
from vamf.errors import first_line
from vamf.experiment_settings import Compute
from vamf.training.step.execution import Execution

T = TypeVar("T")


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One stream for all runs of a process: cuBLAS keeps 64 MiB for every stream it has used."""
    return torch.cuda.Stream(device)


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    tensors: Sequence[Tensor]
    """The inputs whose values are replaced."""
    result: Any


_failures = 0
"""Captures of this process that failed: graphs from before them draw no new random numbers."""


class Replayed(Generic[T]):
    """Computes a function; after ``warm_up`` calls of a kind, as a replayed CUDA graph.

    Calls are of one kind if their inputs differ in the values of tensors only. Other tensors that
    the function uses, such as weights, may change in place. A result is valid until the next call.
    A function that waits for the device, as a proxy or loss may, is called as it is, with a
    warning.
    """

    def __init__(self, function: Callable[..., T], device: torch.device, warm_up: int) -> None:
        """The calls before the capture compile kernels and fill caches: at least one is needed."""
        self._function, self._device, self._warm_up = function, device, warm_up
        self._graphs: dict[Hashable, _Graph] = {}
        self._taken: dict[Hashable, int] = {}
        self._failed, self._failures = False, _failures
        self._aside = _aside(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Any) -> T:
        values = leaves(inputs)
        kind = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in values)
        taken = self._taken.get(kind, 0)
        self._taken[kind] = taken + 1
        if self._failures != _failures:
            self._graphs, self._failures = {}, _failures
        if not (taken < self._warm_up or kind in self._graphs or self._failed):
            self._capture(kind, inputs)
        if kind not in self._graphs:
            return self._called_aside(inputs)
        graph, tensors, result = self._graphs[kind]
        copy_all_(tensors, [a for a in values if isinstance(a, Tensor)])
        graph.replay()
        return result

    def _called_aside(self, inputs: Sequence[Any]) -> T:
        """Calls the function without a graph, on a stream of its own, as capturing requires."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            result = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._aside)
        return result

    def _capture(self, kind: Hashable, inputs: Sequence[Any]) -> None:
        """Captures a call, unless the function waits for the device."""
        global _failures
        own = map_tensors(torch.clone, inputs)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        numbers = torch.cuda.default_generators[stream.device_index]
        before = numbers.clone_state()
        # Meanwhile another thread, which writes a checkpoint, may wait for the device.
        mode, aside = "thread_local", self._aside
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode=mode):
                result = self._function(*own)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # torch leaves its own, and random numbers as captured
            numbers.graphsafe_set_state(before)
            self._failed, _failures = True, _failures + 1
            reason = first_line(error)
            warnings.warn(
                f"steps or evaluations cannot be captured as a CUDA graph: {reason}", stacklevel=3
            )
            return
        tensors = [a for a in leaves(own) if isinstance(a, Tensor)]
        self._graphs[kind] = _Graph(graph, tensors, result)


def replayed(
    function: Callable[..., T], compute: Compute, device: torch.device
) -> Callable[..., T]:
    """A function of tensors that is called often: a graph where steps are captured, else itself.

    Its results are those of the function, and remain valid.
    """
    if not Execution.of(compute, device).capture:
        return function
    graph = Replayed(function, device, warm_up=1)
    return lambda *inputs: map_tensors(torch.clone, graph(*inputs))
