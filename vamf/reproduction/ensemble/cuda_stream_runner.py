"""Runs a fixed sequence of operations on its own CUDA stream: recorded once, then replayed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

WARM_UP = 3
"""Eager runs that CUDA graphs need before the recording."""

RecordedWork = Callable[[], None]
"""Device-side operations on tensors that stay in place."""


class CudaStreamRunner:
    """Runs work on its own stream on a GPU, and directly on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self) -> AbstractContextManager[Any]:
        """A context in which operations are queued on this stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self) -> None:
        """Makes later work wait for all work queued so far on the current stream."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def wait(self) -> None:
        """Blocks until all work queued on this stream is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def record(self, work: RecordedWork) -> RecordedWork:
        """The work as a CUDA graph, after running it a few times; the work itself on the CPU."""
        if self._stream is None:
            return work
        with self():
            for _ in range(WARM_UP):
                work()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                work()
        return graph.replay
