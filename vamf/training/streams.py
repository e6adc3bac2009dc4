"""The draws of many steps at once, for every seed of an ensemble."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vamf.data.mixtures import Mixture
from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.losses import Draws
from vamf.flow.tangents import boundary_velocity
from vamf.random import generator
from vamf.training.objective import Objective

BLOCK = 200
"""Steps that are drawn at once."""


class Block(NamedTuple):
    """Data, noise and times of several steps, with an axis of steps and one of seeds in front."""

    x: Tensor
    """(steps, seeds, batch, ...)."""
    e: Tensor
    """(steps, seeds, batch, ...)."""
    r: Tensor
    """(steps, seeds, batch)."""
    t: Tensor
    """(steps, seeds, batch)."""


Stream = Callable[[int], Block]
"""The block of a number: that of the steps number * BLOCK up to the next one's."""


def equal_count(experiment: Experiment) -> int:
    """How many samples of each batch have r = t; ValueError if that number is not whole."""
    exact = experiment.times.prob_equal * experiment.batch
    if exact != int(exact):
        raise ValueError(
            f"prob_equal * batch must be whole in an ensemble; got {exact} "
            f"({experiment.times.prob_equal} * {experiment.batch})"
        )
    return int(exact)


def draw_block(
    experiment: Experiment, keys: Sequence[tuple[int | str, ...]], count: int, device: torch.device
) -> Block:
    """``count`` steps of draws on ``device``; what a seed gets is a function of its key alone."""
    parts = [_draw(experiment, count, generator(*key, device=device)) for key in keys]
    return _stack(parts)


def _draw(experiment: Experiment, count: int, g: torch.Generator) -> Block:
    assert isinstance(experiment.data, Toy | Mixture)
    size, n_equal = experiment.batch, equal_count(experiment)
    x = experiment.data.batches(count, size, g)
    e = torch.randn(x.shape, generator=g, device=g.device)
    r, t = (part.reshape(count, size) for part in experiment.times(count * size, g))
    return Block(x, e, torch.cat([t[:, :n_equal], r[:, n_equal:]], dim=1), t)


def _stack(parts: Sequence[Block]) -> Block:
    return Block(*(torch.stack(column, dim=1) for column in zip(*parts, strict=True)))


def block_stream(experiment: Experiment, seeds: Sequence[int], device: torch.device) -> Stream:
    """Blocks drawn at once where they are used, each a function of (seed, number)."""

    def stream(number: int) -> Block:
        return draw_block(experiment, [(s, "block", number) for s in seeds], BLOCK, device)

    return stream


def trainer_stream(experiment: Experiment, seeds: Sequence[int], device: torch.device) -> Stream:
    """Step for step what a ``Trainer`` of each seed draws on that device: exact, and slower."""
    objectives = [_objective(replace(experiment, seed=seed), device) for seed in seeds]

    def stream(number: int) -> Block:
        steps = range(number * BLOCK, min((number + 1) * BLOCK, experiment.steps))
        return _stack([_steps([objective.draw(s)[0] for s in steps]) for objective in objectives])

    return stream


def _objective(experiment: Experiment, device: torch.device) -> Objective:
    net = nn.Identity()  # only draws are asked for
    workers = Workers(device=device)
    return Objective(
        experiment, net, boundary_velocity(net), experiment.data.load("train"), workers
    )


def _steps(draws: Sequence[Draws]) -> Block:
    columns = zip(*(d[:4] for d in draws), strict=True)
    return Block(*(torch.stack(column) for column in columns))
