"""Draws data, noise and times of many steps at once, for every seed of an ensemble."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vamf.data.source import PointSource
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.objectives.terms import Draws
from vamf.flow.tangents import boundary_velocity
from vamf.rng import generator
from vamf.training.step.objective import Objective
from vamf.typing import Time

BLOCK = 200
"""Steps in a block."""


class DrawBlock(NamedTuple):
    """The random numbers of several steps, with an axis of steps and one of seeds in front."""

    x: Tensor
    """(steps, seeds, batch, ...)."""
    e: Tensor
    """(steps, seeds, batch, ...)."""
    r: Tensor
    """(steps, seeds, batch)."""
    t: Tensor
    """(steps, seeds, batch)."""
    uniform: Tensor
    """(steps, seeds, batch) in [0, 1]: ``anchor_uniform`` of an ``ObjectiveRule``."""


Stream = Callable[[int], DrawBlock]
"""Returns the block of a number, the steps from number * BLOCK up to the next block."""


def equal_count(experiment: Experiment) -> int:
    """The number of samples of each batch with r = t; ValueError if it is not whole."""
    exact = experiment.times.prob_equal * experiment.batch
    if exact != int(exact):
        raise ValueError(
            f"prob_equal * batch must be whole in an ensemble; got {exact} "
            f"({experiment.times.prob_equal} * {experiment.batch})"
        )
    return int(exact)


def draw_block(
    experiment: Experiment, keys: Sequence[tuple[int | str, ...]], count: int, device: torch.device
) -> DrawBlock:
    """Draws of ``count`` steps on ``device``; those of a seed are a function of its key alone."""
    parts = [_draw(experiment, count, generator(*key, device=device)) for key in keys]
    return _stack(parts)


def _draw(experiment: Experiment, count: int, g: torch.Generator) -> DrawBlock:
    assert isinstance(experiment.data, PointSource)
    size, n_equal = experiment.batch, equal_count(experiment)
    x = experiment.data.batches(count, size, g)
    e = torch.randn(x.shape, generator=g, device=g.device)
    r, t = (part.reshape(count, size) for part in experiment.times(count * size, g))
    uniform = torch.rand(t.shape, generator=g, device=g.device)
    return DrawBlock(x, e, torch.cat([t[:, :n_equal], r[:, n_equal:]], dim=1), t, uniform)


def _stack(parts: Sequence[DrawBlock]) -> DrawBlock:
    return DrawBlock(*(torch.stack(column, dim=1) for column in zip(*parts, strict=True)))


def block_stream(experiment: Experiment, seeds: Sequence[int], device: torch.device) -> Stream:
    """Blocks that are drawn at once on the device, each a function of (seed, number)."""

    def stream(number: int) -> DrawBlock:
        return draw_block(experiment, [(s, "block", number) for s in seeds], BLOCK, device)

    return stream


def trainer_stream(experiment: Experiment, seeds: Sequence[int], device: torch.device) -> Stream:
    """The same draws as those of a ``Trainer`` of each seed on that device; slower."""
    objectives = [_objective(replace(experiment, seed=seed), device) for seed in seeds]

    def stream(number: int) -> DrawBlock:
        steps = range(number * BLOCK, min((number + 1) * BLOCK, experiment.steps))
        return _stack([_steps([objective.draw(s) for s in steps]) for objective in objectives])

    return stream


def _objective(experiment: Experiment, device: torch.device) -> Objective:
    net = nn.Identity()  # only ``draw`` is used
    workers = Workers(device=device)
    return Objective(
        experiment, net, boundary_velocity(net), experiment.data.load("train"), workers
    )


def _steps(draws: Sequence[tuple[Draws, Time]]) -> DrawBlock:
    columns = zip(*((*d[:4], uniform) for d, uniform in draws), strict=True)
    return DrawBlock(*(torch.stack(column) for column in columns))
