"""Couplings for tests: real files, of given or random pairs, and flows that are known exactly."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vamf.data.couplings import CouplingsIndex
from vamf.data.digits import Digits
from vamf.data.shards import begin, write_shard
from vamf.data.source import DataSource
from vamf.data.toys import Toy
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation
from vamf.inference.load import Trained
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.rng import generator
from vamf.typing import Velocity

POINTS = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(16,), embedding=4),
    batch=12,
    steps=4,
    evaluation=Evaluation(
        distance=SlicedWasserstein(samples=16, directions=4, repetitions=2),
        variance_samples=64,
        gradient_batches=2,
    ),
)


def write_couplings(
    root: Path, pairs: Tensor, source: DataSource, labels: Tensor | None = None, **changes: Any
) -> CouplingsIndex:
    """A folder of the pairs (n, 2, *shape), in shards of 4."""
    index = CouplingsIndex(
        **{
            **{"run": "a run", "step": 7, "weights": "0" * 64, "steps": 8, "seed": 0},
            **{"guidance_scale": 1.0, "source": source, "shape": tuple(pairs.shape[2:])},
            **{"classes": 0 if labels is None else source.classes},
            **{"count": len(pairs), "shard": 4},
        }
        | changes
    )
    begin(index, root)
    labels = torch.zeros(len(pairs), dtype=torch.long) if labels is None else labels
    for number in index.shards:
        places = slice(index.of(number).start, index.of(number).stop)
        write_shard(root, index, number, pairs[places, None], labels[places])
    return index


def random_pairs(count: int, shape: tuple[int, ...]) -> Tensor:
    """Random numbers, all different."""
    return torch.randn(count, 2, *shape, generator=generator("pairs", count))


def digits_couplings(root: Path, count: int = 24) -> Tensor:
    """Random pairs of the digits' shape, with labels 0, 1, ..., 9, 0, ...; returns the pairs."""
    pairs = random_pairs(count, (1, 8, 8))
    write_couplings(root, pairs, Digits(), torch.arange(count) % 10)
    return pairs


class Flow(nn.Module):
    """A network whose u(z, r, t) is a known velocity at t, in float64."""

    def __init__(self, velocity: Velocity) -> None:
        super().__init__()
        self.velocity = velocity
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.velocity(z.double(), t.double())


def flow(velocity: Velocity, experiment: Experiment = POINTS) -> Trained:
    """A checkpoint of which the moving average is a known velocity."""
    return Trained(experiment, Flow(velocity), lambda t: 0.0, Path("runs/flow"), 5)
