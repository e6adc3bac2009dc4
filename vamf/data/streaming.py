"""Data sets larger than memory: batches are read from disk before the steps that need them."""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vamf.cpus import usable
from vamf.data.colours import VERSION
from vamf.data.dataset import WHOLE, require_positive, to_device, to_float
from vamf.data.image_files import Cut, Unreadable, stamp
from vamf.data.shuffle import Order
from vamf.files import shown
from vamf.output import say
from vamf.typing import Label, Pixels, Sample

AHEAD = 4
"""How many batches after the requested one are read in advance."""

Batch = tuple[int, int, int, tuple[int | None, int | None, int | None]]
"""Step, size, seed and part, which determine a batch."""


@runtime_checkable
class StreamedSet(Protocol):
    """A data set that is read from disk while it is used."""

    def waiting_share(self) -> float:
        """The share of the time since the last call that was spent waiting for files."""
        ...


class Ahead:
    """Reads batches on threads before they are requested, and measures the time spent waiting.

    The content of a batch is a function of its arguments; reading in advance only changes when it
    is read.
    """

    def __init__(
        self,
        positions: Callable[[int, int, int], Tensor],
        read: Callable[[Sequence[int]], Tensor],
        threads: int,
    ) -> None:
        """``positions(step, size, seed)`` are a batch's samples; ``read`` returns samples, stacked.

        Each of the ``threads`` reads a part of a batch in one call: a call for each sample would
        delay the main thread. ``read`` stacks with numpy, as torch starts further threads.
        """
        self._positions, self._read, self._threads = positions, read, threads
        self._pool = ThreadPoolExecutor(threads)
        self._coming: dict[Batch, list[Future[Tensor]]] = {}
        self._waited, self._since = 0.0, time.monotonic()

    def batch(self, step: int, size: int, seed: int, part: slice) -> Tensor:
        """The samples of this part of the batch, stacked; starts reading the next batches."""
        start = time.monotonic()
        found = torch.cat([f.result() for f in self._request(step, size, seed, part)])
        self._waited += time.monotonic() - start
        self._coming.pop(_key(step, size, seed, part), None)
        for later in range(step + 1, step + 1 + AHEAD):
            self._request(later, size, seed, part)
        return found

    def _request(self, step: int, size: int, seed: int, part: slice) -> list[Future[Tensor]]:
        key = _key(step, size, seed, part)
        if key not in self._coming:
            while len(self._coming) > AHEAD:  # of another run or an evaluation
                for future in self._coming.pop(next(iter(self._coming))):
                    future.cancel()
            self._coming[key] = self._begin(self._positions(step, size, seed)[part].tolist())
        return self._coming[key]

    def _begin(self, positions: Sequence[int]) -> list[Future[Tensor]]:
        many = -(-len(positions) // self._threads)
        starts = range(0, len(positions), many)
        return [self._pool.submit(self._read, positions[k : k + many]) for k in starts]

    def read(self, positions: Sequence[int]) -> Tensor:
        """The samples at these positions, stacked."""
        return torch.cat([part.result() for part in self._begin(positions)])

    def waiting_share(self) -> float:
        """The share of the time since the last call that was spent waiting for files."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share


def _key(step: int, size: int, seed: int, part: slice) -> Batch:
    return step, size, seed, (part.start, part.stop, part.step)


class FileSet:
    """Image files that are decoded when a batch needs them, in the same order as ``ImageSet``."""

    def __init__(self, files: Sequence[Path], cut: Cut, labels: Label, skip: bool) -> None:
        """``skip`` reports a damaged file and uses the next good one of its class instead."""
        self.files, self.cut, self.labels, self.skip = list(files), cut, labels, skip
        self._order = Order(len(files))
        threads = min(16, 2 * usable())
        self._ahead = Ahead(self._order.positions, self._read, threads)
        self._reported: set[Path] = set()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.cut.channels, self.cut.size, self.cut.size)

    def batch(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Sample:
        """The images of this step, as float32 in [-1, 1] on ``device``.

        Raises ValueError naming a damaged file, unless damaged files are skipped.
        """
        return to_float(to_device(self._ahead.batch(step, size, seed, part), device))

    def _read(self, positions: Sequence[int]) -> Pixels:
        return torch.from_numpy(np.stack([self._one(index).numpy() for index in positions]))

    def _one(self, index: int) -> Pixels:
        for other in (*range(index, len(self)), *range(index)):
            if self.labels[other] != self.labels[index]:
                continue
            try:
                return self.cut(self.files[other])
            except Unreadable as error:
                if not self.skip:
                    raise
                self._report(self.files[other], error)
        raise Unreadable(f"no file of the class of {shown(self.files[index])} can be used")

    def _report(self, path: Path, error: Unreadable) -> None:
        if path not in self._reported:
            self._reported.add(path)
            say(f"skipped unusable file {len(self._reported)}: {error}")

    def labels_of(
        self, step: int, size: int, seed: int, device: torch.device, part: slice = WHOLE
    ) -> Label:
        """The labels of ``batch`` with the same arguments."""
        return to_device(self.labels[self._order.positions(step, size, seed)[part]], device)

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """n images, independent and uniform, hence with repetitions; on the CPU."""
        require_positive("n", n)
        chosen = torch.randint(len(self), (n,), generator=generator, device=generator.device)
        return to_float(self.pixels(chosen.tolist()))

    def pixels(self, indices: Sequence[int]) -> Pixels:
        """The images at the given indices, on the CPU."""
        return self._ahead.read(indices)

    def fingerprint(self) -> str:
        """BLAKE2 of names, sizes, modification times and the way of cutting, not of contents."""
        digest = hashlib.blake2b(repr((VERSION, self.cut)).encode(), digest_size=16)
        for path in self.files:
            digest.update(repr((path.name, *stamp(path))).encode())
        return digest.hexdigest()

    def waiting_share(self) -> float:
        """The share of the time since the last call that was spent waiting for files."""
        return self._ahead.waiting_share()
