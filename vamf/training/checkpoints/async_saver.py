"""Saves checkpoints in a background thread, while training continues."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vamf.compat.torch import map_tensors
from vamf.experiment import Experiment
from vamf.training.checkpoints.checkpoint import CheckpointFolder


class Snapshot(NamedTuple):
    """A copy of a state in host memory, which later changes of the original do not affect."""

    state: dict[str, Any]
    copied: torch.cuda.Event | None
    """The event to wait for before ``state`` is read."""

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """Copies a state. Does not wait for the device: it copies before it runs later work."""
        held: dict[str, Any] = map_tensors(_to_host, state)
        event = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if event is not None:
            event.record()
        return cls(held, event)

    def ready(self) -> dict[str, Any]:
        """The state, once the copy is complete."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.state


def _to_host(tensor: Tensor) -> Tensor:
    # Only pinned memory is copied without waiting; torch caches it for the next snapshot.
    held = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return held.copy_(tensor, non_blocking=True)


class Saver:
    """Writes checkpoints in a background thread, one at a time; a context manager.

    The end of the context waits until all checkpoints are written. The next ``save``, ``drain`` or
    the end of the context raises an error that occurred in the background.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        made_on: str | None = None,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """``saved`` is called in the background thread after each checkpoint is on disk."""
        self._folder, self._made_on, self._saved = folder, made_on, saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Any] | None = None

    def save(
        self, experiment: Experiment, state: dict[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Starts to write a checkpoint of the current state."""
        self.drain()
        self._writing = self._thread.submit(self._write, experiment, Snapshot.of(state), metrics)

    def drain(self) -> None:
        """Waits until the checkpoint in progress is on disk; raises an error from writing it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self, experiment: Experiment, snapshot: Snapshot, metrics: Mapping[str, float]
    ) -> None:
        self._folder.save(experiment, snapshot.ready(), metrics, self._made_on)
        self._saved()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            # The error that ended the run matters more than an error of its last checkpoint.
            with suppress(*([Exception] if error is not None else [])):
                self.drain()
        finally:
            self._thread.shutdown()
