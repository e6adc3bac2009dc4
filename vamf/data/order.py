"""The order in which training sees finitely many samples."""

import torch
from torch import Tensor

from vamf.random import generator


class Order:
    """All epochs, each a fresh permutation keyed by (seed, epoch), as one endless stream."""

    def __init__(self, total: int, device: torch.device | str = "cpu") -> None:
        self.total, self.device = total, device
        self._permutation: tuple[tuple[int, int], Tensor] | None = None

    def positions(self, step: int, size: int, seed: int) -> Tensor:
        """Which samples batch ``step`` holds, (size,) int64.

        The batch is the stream's part [step * size, (step + 1) * size), which may lie in several
        epochs. Raises ValueError for an empty batch.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        start, stop, total = step * size, (step + 1) * size, self.total
        parts = [
            self._epoch(seed, epoch)[max(start - epoch * total, 0) : stop - epoch * total]
            for epoch in range(start // total, (stop - 1) // total + 1)
        ]
        return torch.cat(parts)

    def _epoch(self, seed: int, epoch: int) -> Tensor:
        if self._permutation is None or self._permutation[0] != (seed, epoch):
            # Drawn on the CPU, so that the order is the same on every device.
            order = torch.randperm(self.total, generator=generator("epoch", seed, epoch))
            self._permutation = ((seed, epoch), order.to(self.device))
        return self._permutation[1]
