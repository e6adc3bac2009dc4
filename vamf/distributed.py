"""This process's rank among the workers of a run, and communication between them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vamf.contiguous import memory_of


class Workers(NamedTuple):
    """The rank of this process, the number of workers, and this process's device."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    def described(self) -> str:
        """A description of what a run's exact bits depend on besides its experiment."""
        threads = torch.get_num_threads()
        on_cpu = f"a CPU with {threads} thread{'s' * (threads > 1)}"
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else on_cpu
        return f"{self.world} x {device}, torch {torch.__version__}"

    def mine(self, n: int) -> range:
        """This worker's indices of ``n`` items: rank, rank + world, ..."""
        return range(self.rank, n, self.world)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums ``tensor`` over all workers, in place; every worker gets the same result."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def averaged(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The mean of each tensor over all workers, with one message.

        Each tensor has no gaps in memory, and its axes have the same order on every worker.
        Adjacent tensors are replaced by their means.
        """
        if self.world == 1:
            return tensors
        memory = memory_of(tensors)
        if memory is not None:
            self._average(memory)
            return tensors
        flat = [t.detach().as_strided((t.numel(),), (1,)) for t in tensors]
        joined = self._average(torch.cat(flat))
        parts = zip(tensors, joined.split([len(t) for t in flat]), strict=True)
        return [part.as_strided(t.shape, t.stride(), part.storage_offset()) for t, part in parts]

    def _average(self, tensor: Tensor) -> Tensor:
        if dist.get_backend() != "nccl":  # only NCCL can average
            return self.sum(tensor).div_(self.world)
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        return tensor

    def gather(self, text: str) -> list[str]:
        """The texts of all workers, by rank; every worker receives all of them."""
        if self.world == 1:
            return [text]
        # torch 2.11's all_gather_object unpickles, which runs code; weights_only came later.
        sent = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(sent)], device=self.device))
        longest = int(max(lengths))
        padded = sent.new_zeros(longest)
        padded[: len(sent)] = sent
        texts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(texts, padded)
        pairs = zip(texts, lengths, strict=True)
        return [bytes(found[: int(n)].tolist()).decode() for found, n in pairs]
