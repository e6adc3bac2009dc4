"""The multi-layer perceptron for points (arXiv 2605.09235, supplement: toys)."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from vamf.flow.derivatives import apply_with_tangent
from vamf.flow.duals import value_of
from vamf.models.layers import (
    ClassEmbedding,
    Linear,
    check_classes,
    initialise,
    refuse_labels,
    silu,
    sinusoid,
)
from vamf.models.shared_pass import keep, kept
from vamf.typing import Label, Sample, Scalars, Time


class MLP(nn.Module):
    """u(z, r, t) by SiLU layers over [z, emb(t), emb(t) - emb(r)], with all axes of z flattened.

    ``z`` is (batch, ...), ``r`` and ``t`` (batch,); returns the shape of z. At initialisation the
    output is close to 0. With classes, the labels ``y`` are embedded too; None is no class.
    """

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...],
        embedding: int,
        velocity_head: bool = False,
        classes: int = 0,
        guided: bool = False,
        guided_interval: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        widths = (dim + (3 if classes else 2) * embedding, *hidden)
        self.layers = nn.ModuleList(initialise(Linear(a, b)) for a, b in pairwise(widths))
        self.head = initialise(Linear(widths[-1], dim), gain=1e-5)
        self.velocity_head = (
            initialise(Linear(widths[-1], dim), gain=1e-5) if velocity_head else None
        )
        self.labels = (
            ClassEmbedding(classes, embedding, guided, guided_interval) if classes else None
        )

    def forward(
        self,
        z: Sample,
        r: Time,
        t: Time,
        y: Label | None = None,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
    ) -> Sample:
        hidden = self._hidden(z, r, t, y, kappa, interval)
        keep(self, r, t, hidden)
        return apply_with_tangent(partial(_like, value_of(z)), self.head(hidden))

    def velocity(self, z: Sample, t: Time, *known: Tensor | None, r: Time | None = None) -> Sample:
        """v(z, t) by the velocity head, of layers at ``r``, or at t; labels as ``forward``'s."""
        assert self.velocity_head is not None
        times = t if r is None else r, t
        (hidden,) = kept(self, *times) or (self._hidden(z, *times, *known),)
        return _like(z, self.velocity_head(hidden))

    def _hidden(self, z: Sample, r: Time, t: Time, *known: Tensor | None) -> Tensor:
        h = apply_with_tangent(self._known, z, t, r, *known)
        for layer in self.layers:
            h = apply_with_tangent(silu, layer(h))
        return h

    def _known(
        self,
        z: Sample,
        t: Time,
        r: Time,
        y: Label | None = None,
        kappa: Scalars | None = None,
        interval: Tensor | None = None,
    ) -> Tensor:
        emb_r, emb_t = sinusoid(r, self.embedding), sinusoid(t, self.embedding)
        dtype = self.head.weight.dtype
        parts = [z.flatten(1).to(dtype), emb_t.to(dtype), (emb_t - emb_r).to(dtype)]
        if self.labels is not None:
            parts.append(self.labels(y, len(z), kappa, interval))
        else:
            refuse_labels(y)
        return torch.cat(parts, 1)


def _like(z: Sample, out: Tensor) -> Sample:
    return out.reshape(-1, *z.shape[1:]).to(z.dtype)


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A multi-layer perceptron, for points; small images are flattened."""

    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    embedding: int = 32
    """Size of each time embedding, even."""
    velocity_head: bool = False
    """Add a second output layer, for the velocity at t: the proxy `head`."""
    classes: int = 0
    """Number of classes of the labels; 0: unconditional."""
    guided: bool = False
    """Whether it takes the guidance scale as input; sampling then chooses the scale."""
    guided_interval: bool = False
    """Whether it takes the interval of guided times as input, too."""

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, all positive; got {self.hidden}")
        if self.embedding < 2 or self.embedding % 2:
            raise ValueError(f"embedding must be even and at least 2; got {self.embedding}")
        check_classes(self.classes, self.guided, self.guided_interval)

    def build(self, shape: tuple[int, ...]) -> MLP:
        """The network for samples of ``shape``."""
        dim = math.prod(shape)
        inputs = self.classes, self.guided, self.guided_interval
        return MLP(dim, self.hidden, self.embedding, self.velocity_head, *inputs)
