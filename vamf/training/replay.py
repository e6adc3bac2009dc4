"""A fixed piece of work on a stream of its own: recorded once as a CUDA graph, then replayed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

WARM_UP = 3
"""Eager runs before the recording, as CUDA graphs need them."""

Work = Callable[[], None]
"""Device-side operations on tensors that stay in place."""


class Lane:
    """Where one program computes: a stream of its own on a GPU, nothing special on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self) -> AbstractContextManager[Any]:
        """Inside, work is queued here, after that queued so far."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self) -> None:
        """What is queued from now on waits for what the current stream has been given."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def wait(self) -> None:
        """Blocks until everything queued here is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def record(self, work: Work) -> Work:
        """The work as a CUDA graph, which runs it a few times; the work itself on the CPU."""
        if self._stream is None:
            return work
        with self():
            for _ in range(WARM_UP):
                work()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                work()
        return graph.replay
