"""The multi-layer perceptron for points (arXiv 2605.09235, supplement: toys)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from vamf.models.layers import initialise, sinusoid
from vamf.typing import Sample, Time


class MLP(nn.Module):
    """u(z, r, t) by SiLU layers over [z, emb(t), emb(t) - emb(r)], with all axes of z flattened.

    ``z`` is (batch, ...), ``r`` and ``t`` (batch,); returns the shape of z. At initialisation the
    output is practically 0.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        self.embedding = embedding
        widths = (dim + 2 * embedding, *hidden)
        self.layers = nn.ModuleList(initialise(nn.Linear(a, b)) for a, b in pairwise(widths))
        self.head = initialise(nn.Linear(widths[-1], dim), gain=1e-5)

    def forward(self, z: Sample, r: Time, t: Time) -> Sample:
        emb_r, emb_t = sinusoid(r, self.embedding), sinusoid(t, self.embedding)
        dtype = self.head.weight.dtype
        h = torch.cat([z.flatten(1).to(dtype), emb_t.to(dtype), (emb_t - emb_r).to(dtype)], 1)
        for layer in self.layers:
            h = nn.functional.silu(layer(h))
        return self.head(h).reshape(z.shape).to(z.dtype)


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A multi-layer perceptron, for points; small images are flattened."""

    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    embedding: int = 32
    """Size of each time embedding, even."""

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, all positive; got {self.hidden}")
        if self.embedding < 2 or self.embedding % 2:
            raise ValueError(f"embedding must be even and at least 2; got {self.embedding}")

    def build(self, shape: tuple[int, ...]) -> MLP:
        """The network for samples of ``shape``."""
        return MLP(math.prod(shape), self.hidden, self.embedding)
