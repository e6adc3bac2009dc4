"""The objective as a module: what DistributedDataParallel wraps."""

import torch
from torch import nn

from vamf.data.dataset import Dataset
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.losses import Draws, LossTerms
from vamf.flow.times import count_equal, draw_times
from vamf.random import generator
from vamf.typing import Time, Velocity


class Objective(nn.Module):
    """Draws a step's data, noise and times, and returns its loss.

    The draws of the global batch are a function of (seed, step) alone; worker ``rank`` takes the
    samples rank, rank + world, ... of it, so a run means the same on any number of workers. The
    jvp happens inside ``forward``: wrapped in DistributedDataParallel, gradients are averaged.
    """

    def __init__(
        self,
        experiment: Experiment,
        net: nn.Module,
        v_hat: Velocity,
        dataset: Dataset,
        workers: Workers,
    ) -> None:
        super().__init__()
        self.net, self.v_hat = net, v_hat
        self.experiment, self.dataset, self.workers = experiment, dataset, workers

    def forward(self, step: int) -> LossTerms:
        draws, uniform = self.draw(step)
        return self.experiment.loss(
            self.net, draws, beta=self.beta(step), v_hat=self.v_hat, anchor_uniform=uniform
        )

    def beta(self, step: int) -> float:
        """beta in the given step, counted from 0."""
        return self.experiment.beta(step / self.experiment.steps)

    def draw(self, step: int) -> tuple[Draws, Time]:
        """This worker's share of the step's samples, and uniform numbers for the anchor."""
        e, (rank, world, device) = self.experiment, self.workers
        x = self.dataset.batch(step, e.batch, e.seed, device)
        draws, uniform = draw(e, x, generator(e.seed, "step", step, device=device))
        mine, n_equal = slice(rank, None, world), len(range(rank, draws.n_equal, world))
        x, noise, r, t = (part[mine] for part in (draws.x, draws.e, draws.r, draws.t))
        return Draws(x, noise, r, t, n_equal), uniform[mine]


def draw(experiment: Experiment, x: torch.Tensor, g: torch.Generator) -> tuple[Draws, Time]:
    """Noise, times and anchor numbers for the data ``x``, from one generator on its device."""
    n_equal = count_equal(experiment.times.prob_equal, len(x), generator(g.initial_seed(), "equal"))
    noise = torch.randn(x.shape, generator=g, device=x.device)
    r, t = draw_times(experiment.times, len(x), n_equal, g)
    uniform = torch.rand(len(x), generator=g, device=x.device)
    return Draws(x, noise, r, t, n_equal), uniform
