"""Your own data, network, loss and preset: one file, named where vamf's own names stand.

uv run vamf train jobs/examples/shapes.py:SHAPES --batch 64
uv run vamf train digits --set loss.kind=jobs/examples/shapes.py:WithBoundary loss.boundary=0.1
uv run vamf tune jobs/examples/shapes_space.py --trials 8
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from vamf.data.dataset import ImageSet, Split
from vamf.data.source import DataSource
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Evaluation
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import Draws, LossTerms, ObjectiveRule, squared_norm
from vamf.flow.path import interpolate
from vamf.metrics.distances import FrechetDistance
from vamf.models.config import NetworkConfig
from vamf.typing import AverageVelocity, Sample, Time


@dataclass(frozen=True, kw_only=True)
class Discs(DataSource):
    """Grey 8x8 images of a white disc: a data set is whatever returns images and labels."""

    count: int = 2000
    """Images in each split."""
    classes: ClassVar[int] = 0
    shape: ClassVar[tuple[int, ...]] = (1, 8, 8)

    def load(self, split: Split) -> ImageSet:
        g = torch.Generator().manual_seed(0 if split == "train" else 1)
        x, y, radius = 2 + 3 * torch.rand(3, self.count, 1, 1, 1, generator=g)
        along = torch.arange(8.0)
        inside = (along - x) ** 2 + (along[:, None] - y) ** 2 < (radius - 1) ** 2
        labels = torch.zeros(self.count, dtype=torch.long)
        return ImageSet(255 * inside.to(torch.uint8), labels)


@dataclass(frozen=True, kw_only=True)
class Convolutions(NetworkConfig):
    """u(z, r, t) by a few convolutions: whatever torch.func.jvp differentiates."""

    width: int = 32
    """Channels."""

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        return _Convolutions(shape[0], self.width)


class _Convolutions(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 2, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 5, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, z: Sample, r: Time, t: Time) -> Sample:
        times = torch.stack([r, t], 1)[..., None, None].expand(-1, -1, *z.shape[2:])
        out: Sample = self.layers(torch.cat([z, times], 1))
        return out


@dataclass(frozen=True, kw_only=True)
class WithBoundary(ObjectiveRule):
    """MeanFlow's loss, and flow matching at r = t of every sample: |u(z, t, t) - v_cond|^2."""

    boundary: float = 0.5
    """Weight of the second term."""
    mean_flow: MeanFlowLoss = field(default_factory=MeanFlowLoss)
    """The first term."""

    def __call__(self, u: AverageVelocity, draws: Draws, **given: Any) -> LossTerms:
        terms = self.mean_flow(u, draws, **given)
        z, v_cond = interpolate(draws.x, draws.e, draws.t)
        error = squared_norm(u(z, draws.t, draws.t) - v_cond).mean()
        return terms._replace(loss=terms.loss + self.boundary * error)


SHAPES = Experiment(
    data=Discs(),
    model=Convolutions(),
    loss=WithBoundary(),
    batch=128,
    steps=1000,
    evaluation=Evaluation(every=500, distance=FrechetDistance()),
    checkpoint=Checkpoints(every=500),
)
