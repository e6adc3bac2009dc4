"""Measures the distance of each member's points to real ones, with the same noise for all."""

from typing import NamedTuple

import torch
from torch import Tensor

from vamf.metrics.wasserstein import sliced_wasserstein
from vamf.reproduction.ensemble.ensemble import Ensemble
from vamf.reproduction.protocol import SETS, Protocol
from vamf.rng import generator
from vamf.typing import Sample


class Draw(NamedTuple):
    """The random inputs of one repetition of the measurement."""

    real: Sample
    """Real points."""
    noise: Sample
    """The noise that every member samples from."""
    marginal: Sample
    """Other real points, for the floor; with redrawn centres each point has its own."""


def draw(protocol: Protocol, name: str, repetition: int, device: torch.device) -> Draw:
    """The inputs of a repetition: a function of evaluation seed, set and repetition."""
    n, data = protocol.distance.samples, SETS[name]
    g = generator(protocol.evaluation_seed, "reproduction", name, repetition)
    real = data.batches(1, n, g)[0]
    noise = torch.randn(real.shape, generator=g)
    marginal = data.batches(n, 1, g)[:, 0]
    return Draw(*(points.to(device) for points in (real, noise, marginal)))


def distances(protocol: Protocol, repetition: int, fake: Sample, real: Sample) -> Tensor:
    """(SW1, SW2), (2,) float64, along the repetition's directions; NaN for points not finite."""
    if not bool(fake.isfinite().all()):
        return torch.full((2,), torch.nan, dtype=torch.float64)
    g = generator(protocol.evaluation_seed, "directions", repetition)
    found = sliced_wasserstein(fake, real, directions=protocol.distance.directions, generator=g)
    return torch.tensor(found, dtype=torch.float64)


def measure(ensemble: Ensemble, protocol: Protocol, name: str) -> tuple[Tensor, Tensor]:
    """SW1 and SW2 of members, (repetitions, 2, seeds, betas), and the floor, (repetitions, 2).

    The floor is the distance between real points and other real points.
    """
    rows, floor = [], []
    for repetition in range(protocol.distance.repetitions):
        real, noise, marginal = draw(protocol, name, repetition, ensemble.device)
        fakes = ensemble.samples(noise).flatten(0, 1).float()
        found = torch.stack([distances(protocol, repetition, fake, real) for fake in fakes], 1)
        rows.append(found.reshape(2, len(ensemble.seeds), len(ensemble.betas)))
        floor.append(distances(protocol, repetition, marginal, real))
    return torch.stack(rows), torch.stack(floor)
