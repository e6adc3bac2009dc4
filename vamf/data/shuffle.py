"""The order of samples in training on a finite data set."""

import torch
from torch import Tensor

from vamf.rng import generator


class Order:
    """An endless stream of epochs, each a permutation that is a function of (seed, epoch)."""

    def __init__(self, total: int, device: torch.device | str = "cpu") -> None:
        self.total, self.device = total, device
        self._permutation: tuple[tuple[int, int], Tensor] | None = None

    def positions(self, step: int, size: int, seed: int) -> Tensor:
        """The indices of the samples of batch ``step``, (size,) int64.

        The batch is the part [step * size, (step + 1) * size) of the stream, which may span several
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
