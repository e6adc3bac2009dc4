"""Mean and covariance of features, gathered in pieces, on any number of workers."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from vamf.typing import Features


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStatistics:
    """The Gaussian that a Fréchet distance sees of a set of features; float64."""

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]
    """The unbiased one, divided by count - 1."""
    count: int

    def save(self, path: Path) -> None:
        """Writes mu, sigma and n to an npz file; another process sees all of it or nothing."""
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with partial.open("wb") as file:
                np.savez(file, mu=self.mean.cpu(), sigma=self.covariance.cpu(), n=self.count)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what ``save`` wrote, onto the CPU; ValueError if an array is missing."""
        with np.load(path, allow_pickle=False) as stored:
            missing = {"mu", "sigma", "n"} - set(stored.files)
            if missing:
                raise ValueError(f"{path} must hold mu, sigma and n; lacks {sorted(missing)}")
            return cls(
                mean=torch.from_numpy(stored["mu"]).double(),
                covariance=torch.from_numpy(stored["sigma"]).double(),
                count=int(stored["n"]),
            )


class FeatureMoments:
    """Count, sum and sum of outer products of features, in float64.

    Sums make the result independent, to float64 rounding, of how the features were cut into
    batches, groups and workers. Memory is 8 (dim + dim^2) bytes: 34 MB for 2048 features.
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
        # Before the product: float32 sums would cost ten digits, TF32 products more.
        exact = features.detach().to(self.sum.device, torch.float64)
        self.count += len(exact)
        self.sum += exact.sum(0)
        self.outer.addmm_(exact.T, exact)
        return self

    def merge(self, other: "FeatureMoments") -> Self:
        """Adds what another accumulator has gathered; returns itself."""
        if other.dim != self.dim:
            raise ValueError(f"dim must be {self.dim}; got {other.dim}")
        self.count += other.count
        self.sum += other.sum.to(self.sum.device)
        self.outer += other.outer.to(self.outer.device)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Adds the moments of all ranks, so that each holds those of all; returns itself.

        Collective: every rank of the group must call it, also one without features. NCCL needs
        the moments on a CUDA device.
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
