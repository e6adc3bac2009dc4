"""Checkpoints that the training loop does not wait for."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vamf.experiment import Experiment
from vamf.training.checkpoint import CheckpointFolder


class Snapshot(NamedTuple):
    """A state as it is now, in host memory, whatever becomes of the original."""

    state: dict[str, Any]
    copied: torch.cuda.Event | None
    """What to wait for before ``state`` is read."""

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """Copies a state; nothing waits for the device, whose later work comes after the copy."""
        held: dict[str, Any] = tree_map_only(Tensor, _to_host, state)
        event = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if event is not None:
            event.record()
        return cls(held, event)

    def ready(self) -> dict[str, Any]:
        """The state, once it is all here."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.state


def _to_host(tensor: Tensor) -> Tensor:
    # Pinned memory, which torch keeps for the next snapshot, is what copies without waiting.
    held = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return held.copy_(tensor, non_blocking=True)


class Saver:
    """Writes checkpoints in the background, one at a time; a context, at whose end all is written.

    What goes wrong in the background is raised by the next ``save``, by ``drain``, or at the end.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        made_on: str | None = None,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """``saved`` hears in the background of each checkpoint that is on the disk."""
        self._folder, self._made_on, self._saved = folder, made_on, saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Any] | None = None

    def save(
        self, experiment: Experiment, state: dict[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Begins to write a checkpoint of the state as it is now."""
        self.drain()
        self._writing = self._thread.submit(self._write, experiment, Snapshot.of(state), metrics)

    def drain(self) -> None:
        """Waits until what was begun is on the disk; raises what went wrong with it."""
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
            # What ended the run is more telling than what became of its checkpoint.
            with suppress(*([Exception] if error is not None else [])):
                self.drain()
        finally:
            self._thread.shutdown()
