"""This process's place among the workers of a run, and sums over them."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Workers(NamedTuple):
    """Rank of this process, how many work together, and where this one computes."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    def mine(self, n: int) -> range:
        """The indices of ``n`` things that are this worker's: rank, rank + world, ..."""
        return range(self.rank, n, self.world)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums ``tensor`` over all workers, in place; every worker gets the same result."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor
