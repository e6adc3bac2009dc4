"""Distances of every member's points to real ones, on noise and points that all members share."""

from typing import NamedTuple

import torch
from torch import Tensor

from vamf.metrics.wasserstein import sliced_wasserstein
from vamf.random import generator
from vamf.reproduction.protocol import SETS, Protocol
from vamf.training.ensemble import Ensemble
from vamf.typing import Sample


class Draw(NamedTuple):
    """What one repetition of the measurement compares with, from random streams of its own."""

    real: Sample
    """Real points."""
    noise: Sample
    """The noise that every member samples from."""
    marginal: Sample
    """Other real points: all a perfect model could do; with redrawn centres, those of all."""


def draw(protocol: Protocol, name: str, repetition: int, device: torch.device) -> Draw:
    """The draws of a repetition: a function of evaluation seed, set and repetition."""
    n, data = protocol.distance.samples, SETS[name]
    g = generator(protocol.evaluation_seed, "reproduction", name, repetition)
    real = data.batches(1, n, g)[0]
    noise = torch.randn(real.shape, generator=g)
    marginal = data.batches(n, 1, g)[:, 0]
    return Draw(*(points.to(device) for points in (real, noise, marginal)))


def distances(protocol: Protocol, repetition: int, fake: Sample, real: Sample) -> Tensor:
    """(SW1, SW2), (2,) float64, along the repetition's own directions; NaN if a point is."""
    if not bool(fake.isfinite().all()):
        return torch.full((2,), torch.nan, dtype=torch.float64)
    g = generator(protocol.evaluation_seed, "directions", repetition)
    found = sliced_wasserstein(fake, real, directions=protocol.distance.directions, generator=g)
    return torch.tensor(found, dtype=torch.float64)


def measure(ensemble: Ensemble, protocol: Protocol, name: str) -> tuple[Tensor, Tensor]:
    """SW1 and SW2 of members, (repetitions, 2, seeds, betas), and the floor, (repetitions, 2).

    The floor is the distance of real points to real points.
    """
    rows, floor = [], []
    for repetition in range(protocol.distance.repetitions):
        real, noise, marginal = draw(protocol, name, repetition, ensemble.device)
        fakes = ensemble.samples(noise).flatten(0, 1).float()
        found = torch.stack([distances(protocol, repetition, fake, real) for fake in fakes], 1)
        rows.append(found.reshape(2, len(ensemble.seeds), len(ensemble.betas)))
        floor.append(distances(protocol, repetition, marginal, real))
    return torch.stack(rows), torch.stack(floor)
