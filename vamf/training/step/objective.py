"""The objective as a module, which DistributedDataParallel wraps."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from vamf.data.dataset import Coupled, Dataset, Labelled
from vamf.diagnostics.adaptive import AdaptiveBeta, AdaptiveBetaState
from vamf.distributed import Workers
from vamf.dropout import Masks, sharing, without_dropout
from vamf.experiment import Experiment
from vamf.flow.guidance import (
    Guided,
    Labels,
    drop_labels,
    velocity_with_labels,
    with_augment_labels,
    with_labels,
)
from vamf.flow.objectives.terms import Draws, LossTerms
from vamf.flow.oracle import for_batch
from vamf.flow.path import interpolate
from vamf.flow.tangents import boundary_velocity
from vamf.flow.times import count_equal, draw_times
from vamf.flow.trace import draw_signs
from vamf.models.shared_pass import sharing_passes
from vamf.rng import generator
from vamf.training.step.execution import Execution
from vamf.training.step.head import head_loss
from vamf.training.step.moving import Moved, moved, programs
from vamf.typing import AverageVelocity, Beta, BetaAt, Label, Sample, Time, Velocity


class Batch(NamedTuple):
    """The data of all workers' samples of a step, of which the proxy `batch` is made.

    It stays whole where a step's samples are split, and the mean over the parts is then the same.
    """

    x: Sample
    labels: Label | None


class Inputs(NamedTuple):
    """The inputs from which the loss of a step is computed."""

    draws: Draws
    uniform: Time
    labels: Labels | None
    augment_labels: torch.Tensor | None
    beta: Beta
    signs: torch.Tensor | None
    moved: Moved
    """What the loss takes from training's progress."""
    batch: Batch | None = None

    def micro_batch(self, index: int, count: int) -> "Inputs":
        """The samples index, index + count, ...: first those with r = t, as in the whole batch."""
        if count == 1:
            return self
        mine = slice(index, None, count)
        return Inputs(
            self.draws.every(count, index),
            self.uniform[mine],
            None if self.labels is None else self.labels.of(mine),
            _taken(mine, self.augment_labels),
            self.beta[mine] if isinstance(self.beta, torch.Tensor) else self.beta,
            None if self.signs is None else self.signs[:, mine],
            self.moved,
            self.batch,
        )


def _taken(mine: slice, samples: torch.Tensor | None) -> Any:
    return None if samples is None else samples[mine]


class Objective(nn.Module):
    """Draws a step's data, noise and times, and returns its loss.

    The draws of the global batch depend only on (seed, step); worker ``rank`` takes the samples
    rank, rank + world, ... of it, so a run gives the same result on any number of workers. The jvp
    runs inside ``forward``, so DistributedDataParallel averages the gradients.
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
        self.net, self.dataset, self.workers = net, dataset, workers
        self.execution = Execution.of(experiment.compute, workers.device)
        # With dropout the loss's evaluation uses masks, and guidance's uses none.
        self._steady = self.execution.duals and not getattr(experiment.model, "dropout", 0)
        rule = experiment.beta
        self.adapted = (
            AdaptiveBetaState.new(rule, workers.device) if isinstance(rule, AdaptiveBeta) else None
        )
        self.begin(experiment, v_hat)

    def begin(self, experiment: Experiment, v_hat: Velocity, first: int = 0) -> None:
        """Takes the loss, times and beta of a stage that begins with the step ``first``."""
        self.experiment, self.v_hat, self.first = experiment, v_hat, first
        self._moves = experiment.beta.varies_over_training and self.execution.duals

    @property
    def u(self) -> AverageVelocity:
        """The network in the execution's precision."""
        return self.execution.network(self.net)

    def forward(self, inputs: Inputs) -> LossTerms:
        return self.terms(inputs)

    def inputs(self, step: int) -> Inputs:
        """All that a step's loss depends on except the weights and the dropout masks."""
        batch = self.batch(step)
        draws, uniform = self.draw(step, batch)
        labels = None if self.experiment.guidance is None else self.labels(step)
        beta = self.beta(step, draws.t)
        if self._moves and isinstance(beta, float):  # a captured step has its numbers built in
            beta = torch.full_like(draws.t, beta)
        now = moved(self.experiment, step - self.first, self.execution.duals, self.workers.device)
        known = self.augment_labels(step), beta, self.signs(step), now, batch
        return Inputs(draws, uniform, labels, *known)

    def programs(self) -> list[Moved]:
        """What the loss takes from progress, once for each program that this stage's steps have."""
        return programs(self.experiment, self.execution.duals, self.workers.device)

    def batch(self, step: int) -> Batch | None:
        """The step's data whole, if the proxy is made of them: the same on all workers."""
        e, device = self.experiment, self.workers.device
        if e.proxy != "batch":
            return None
        x = self.dataset.batch(step, e.batch, e.seed, device)
        if e.guidance is None:
            return Batch(x, None)
        assert isinstance(self.dataset, Labelled)
        return Batch(x, self.dataset.labels_of(step, e.batch, e.seed, device))

    def terms(self, inputs: Inputs) -> LossTerms:
        """The loss of a step: a function of tensors that does not wait for the device.

        All evaluations of the trained network share their dropout masks, except guidance's own
        velocity, which uses no dropout.
        """
        masks = Masks(len(inputs.draws.x))
        with self.execution.forward(), sharing(masks), sharing_passes():
            return self._terms(*inputs)

    def _terms(
        self,
        draws: Draws,
        uniform: Time,
        labels: Labels | None,
        augment_labels: torch.Tensor | None,
        beta: Beta,
        signs: torch.Tensor | None,
        moved: Moved,
        batch: Batch | None,
    ) -> LossTerms:
        v_hat = self.v_hat if batch is None else for_batch(self.v_hat, *batch)
        u, v_hat, guided = self._guided(draws, labels, augment_labels, beta, v_hat)
        loss: Any = self.experiment.loss
        compiled = loss.moves and self.execution.duals
        terms = loss(
            u,
            draws,
            beta=guided.beta,
            v_hat=v_hat,
            anchor_uniform=uniform,
            signs=signs,
            velocity=guided.velocity,
            cond_weight=guided.cond_weight,
            **{"moved" if compiled else "progress": moved},
        )
        if self.experiment.proxy == "head":
            given = draws, labels, augment_labels, guided.velocity
            return terms._replace(loss=terms.loss + head_loss(self.experiment, self.net, *given))
        return terms

    def _guided(
        self,
        draws: Draws,
        labels: Labels | None,
        augment_labels: torch.Tensor | None,
        beta: Beta,
        v_hat: Velocity,
    ) -> tuple[AverageVelocity, Velocity, Guided]:
        """The network and the proxy with the step's labels, if any; and v_g with its beta."""
        guidance, headed = self.experiment.guidance, self.experiment.proxy == "head"
        u, v_hat = self._informed(augment_labels, v_hat)
        if guidance is None or labels is None:
            return u, v_hat, Guided(None, beta)
        z, v_cond = interpolate(draws.x, draws.e, draws.t)
        n_deferred = draws.n_equal if self._steady and not headed else 0
        # train=False in the authors' code; a head is the velocity of a network that has one
        own = without_dropout(v_hat) if headed else boundary_velocity(without_dropout(u))
        guided = guidance(own, v_hat, z, draws.t, v_cond, labels, beta, n_deferred)
        known = labels.y, labels.kappa, labels.interval
        return with_labels(u, *known), velocity_with_labels(v_hat, *known), guided

    def _informed(
        self, augment_labels: torch.Tensor | None, v_hat: Velocity
    ) -> tuple[AverageVelocity, Velocity]:
        """The network and the proxy with the step's augment labels, if there are any."""
        if augment_labels is None:
            return self.u, v_hat
        return with_augment_labels(self.u, augment_labels, times=2), with_augment_labels(
            v_hat, augment_labels, times=1
        )

    def augment_labels(self, step: int) -> torch.Tensor | None:
        """The augment labels of this worker's images, or None if images are not augmented."""
        rule, strengths = self.experiment.augment, self.strengths(step)
        return None if rule is None or strengths is None else rule.conditioning(strengths)

    def strengths(self, step: int) -> torch.Tensor | None:
        """This worker's share of the step's augmentations, if any, from their own random stream."""
        e, (rank, world, device) = self.experiment, self.workers
        if e.augment is None:
            return None
        g = generator(e.seed, "augment", step, device=device)
        return e.augment.draw(e.batch, g)[rank::world]

    def labels(self, step: int) -> Labels:
        """This worker's share of the step's labels; its own random stream drops some of them."""
        e, (rank, world, device) = self.experiment, self.workers
        assert e.guidance is not None and isinstance(self.dataset, Labelled)
        y = self.dataset.labels_of(step, e.batch, e.seed, device)
        g = generator(e.seed, "labels", step, device=device)
        y, dropped, *_ = drop_labels(y, e.model.classes, e.guidance.dropout, g)
        kappa = e.guidance.draw_kappa(e.batch, generator(e.seed, "scales", step, device=device))
        if kappa is not None:
            kappa = kappa.masked_fill(dropped, 0)
        interval = self._interval(step, dropped) if e.guidance.random_interval else None
        return Labels(y, dropped, kappa, interval).of(slice(rank, None, world))

    def _interval(self, step: int, dropped: torch.Tensor) -> torch.Tensor | None:
        """The guided times of the whole batch's samples; all where r = t or without a label."""
        e, device = self.experiment, self.workers.device
        assert e.guidance is not None
        n_equal = samples_equal(e, e.batch, generator(e.seed, "step", step))
        equal = torch.arange(e.batch, device=device) < n_equal
        g = generator(e.seed, "intervals", step, device=device)
        return e.guidance.draw_interval(dropped | equal, g)

    def beta(self, step: int, t: Time) -> Beta:
        """beta of samples at times ``t`` in a step, counted from 0."""
        return beta_at(self.experiment, step - self.first, self.adapted)(t)

    def signs(self, step: int) -> torch.Tensor | None:
        """This worker's share of the step's sign vectors for the trace weight, if it is used.

        They have their own random stream, so drawing them changes no other random number.
        """
        e, (rank, world, device) = self.experiment, self.workers
        if not e.loss.probes:
            return None
        shape = (e.loss.probes, e.batch, *self.dataset.shape)
        signs = draw_signs(shape, generator(e.seed, "trace", step, device=device))
        return signs[:, rank::world]

    def draw(self, step: int, batch: Batch | None = None) -> tuple[Draws, Time]:
        """This worker's share of the step's samples, and uniform numbers for the anchor.

        ``batch``, if given, has the data already. Couplings bring their noise; the other numbers
        are the same as without them.
        """
        e, (rank, world, device) = self.experiment, self.workers
        mine = slice(rank, None, world)
        if batch is None:
            x = self.dataset.batch(step, e.batch, e.seed, device, mine)
        else:
            x = batch.x[mine].contiguous()
        strengths = self.strengths(step)
        if e.augment is not None and strengths is not None:
            x = e.augment(x, strengths)
        g = generator(e.seed, "step", step, device=device)
        (noise, r, t, uniform), n_equal = draw_noise(e, (e.batch, *self.dataset.shape), g)
        n_equal, noise = len(range(rank, n_equal, world)), noise[mine]
        if isinstance(self.dataset, Coupled):
            noise = self.dataset.noise_of(step, e.batch, e.seed, device, mine)
        return Draws(x, noise, r[mine], t[mine], n_equal), uniform[mine]


def beta_at(experiment: Experiment, step: int, adapted: AdaptiveBetaState | None) -> BetaAt:
    """beta in a step, counted from 0, as a function of t; ``adapted`` is its learnt state.

    In the steps of stages it is that of the first step after them.
    """
    rule = experiment.beta
    if isinstance(rule, AdaptiveBeta):
        assert adapted is not None
        return adapted.at
    return partial(rule.at, experiment.progress(step))


def draw(
    experiment: Experiment, x: Sample, g: torch.Generator, own: Sample | None = None
) -> tuple[Draws, Time]:
    """Noise, times and anchor numbers for the data ``x``, from one generator on its device.

    ``own``, if given, replaces the noise; the other numbers do not change.
    """
    (noise, r, t, uniform), n_equal = draw_noise(experiment, x.shape, g)
    return Draws(x, noise if own is None else own, r, t, n_equal), uniform


def samples_equal(experiment: Experiment, n: int, g: torch.Generator) -> int:
    """How many of ``n`` samples, drawn from this generator, have r = t: the first ones."""
    share = experiment.times.prob_equal
    return count_equal(share, n, generator(g.initial_seed(), "equal"))


def draw_noise(
    experiment: Experiment, shape: Sequence[int], g: torch.Generator
) -> tuple[tuple[Sample, Time, Time, Time], int]:
    """Noise of ``shape``, r, t and anchor numbers; and the number of samples with r = t."""
    n, times = shape[0], experiment.times
    n_equal = samples_equal(experiment, n, g)
    noise = torch.randn(tuple(shape), generator=g, device=g.device)
    r, t = draw_times(times, n, n_equal, g)
    return (noise, r, t, torch.rand(n, generator=g, device=g.device)), n_equal
