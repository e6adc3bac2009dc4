"""Accumulates mean and covariance of features in pieces, on any number of workers."""

from typing import Self

import torch
import torch.distributed as dist

from vamf.metrics.statistics import FeatureStatistics
from vamf.typing import Features


class FeatureMoments:
    """Count, sum and sum of outer products of features, in float64.

    Sums make the result independent, up to float64 rounding, of the division into batches, groups
    and workers. Memory is 8 (dim + dim^2) bytes: 34 MB for 2048 features.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @property
    def dim(self) -> int:
        """The number of features."""
        return len(self.sum)

    def update(self, features: Features) -> Self:
        """Adds a batch, (n, dim), n >= 0; returns itself."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features must be (n, {self.dim}); got {tuple(features.shape)}")
        # Before the product: float32 sums would lose ten digits, TF32 products more.
        exact = features.detach().to(self.sum.device, torch.float64)
        self.count += len(exact)
        self.sum += exact.sum(0)
        self.outer.addmm_(exact.T, exact)
        return self

    def merge(self, other: "FeatureMoments") -> Self:
        """Adds the moments of another accumulator; returns itself."""
        if other.dim != self.dim:
            raise ValueError(f"dim must be {self.dim}; got {other.dim}")
        self.count += other.count
        self.sum += other.sum.to(self.sum.device)
        self.outer += other.outer.to(self.outer.device)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Replaces the moments on every rank by the sum over all ranks; returns itself.

        Collective: every rank of the group must call it, even without features. NCCL needs the
        moments on a CUDA device.
        """
        count = torch.tensor([self.count], device=self.sum.device)
        for tensor in (count, self.sum, self.outer):
            dist.all_reduce(tensor, group=group)
        self.count = int(count)
        return self

    def statistics(self) -> FeatureStatistics:
        """Mean and unbiased covariance; ValueError for fewer than two or non-finite features."""
        if self.count < 2:
            raise ValueError(f"count must be at least 2; got {self.count}")
        if not (self.sum.isfinite().all() and self.outer.isfinite().all()):
            raise ValueError("features must be finite; got a sum that is not")
        mean = self.sum / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return FeatureStatistics(
            mean=mean, covariance=(covariance + covariance.T) / 2, count=self.count
        )
