"""Evaluates a run on noise that is the same for all runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vamf.data.dataset import draw_with_noise
from vamf.data.source import LatentSource
from vamf.diagnostics.variance import (
    TIMES,
    evaluation_draws,
    mean_gradient,
    own_losses,
    own_mean_gradient,
    sample_losses,
    trace_with_error,
    variance_with_error,
)
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.guidance import velocity_with_labels, with_labels
from vamf.flow.objectives.ddpm import DDPM
from vamf.flow.objectives.terms import Draws
from vamf.flow.oracle import for_batch
from vamf.flow.samplers import euler, heun, sample
from vamf.flow.tangents import boundary_velocity
from vamf.metrics.distances import Generate, Measurement
from vamf.models.config import takes_interval
from vamf.rng import generator, seed_of
from vamf.training.step.execution import Execution
from vamf.training.step.memory import samples_beside
from vamf.training.step.networks import as_sampled
from vamf.training.step.objective import draw
from vamf.training.step.precision import matmul_precision
from vamf.training.step.replayed import replayed
from vamf.training.step.trainer import Trainer
from vamf.typing import AverageVelocity, Beta, BetaAt, Label, Sample, Scalars, Time, Velocity

Metrics = dict[str, Measurement]


def noise(seed: int, indices: range, shape: tuple[int, ...], device: torch.device) -> Sample:
    """Standard normal noise of the samples with these indices; each depends only on its index."""
    draws = [torch.randn(shape, generator=generator(seed, "noise", i)) for i in indices]
    return torch.stack(draws).to(device)


def classes(seed: int, indices: range, number: int, device: torch.device) -> Label:
    """Uniform random classes of the samples with these indices; each depends only on its index."""
    draws = [torch.randint(number, (1,), generator=generator(seed, "class", i)) for i in indices]
    return torch.cat(draws).to(device)


def generate_from(
    u: AverageVelocity,
    experiment: Experiment,
    shape: tuple[int, ...],
    device: torch.device,
    label: int | None = None,
) -> Generate:
    """A function from sample indices to generated samples; latents are decoded to images.

    A class-conditional network generates class ``label``, or a random class for each sample.
    """
    evaluation, number = experiment.evaluation, experiment.model.classes
    decode, fast = experiment.decoder(device), replayed(u, experiment.compute, device)

    def generate(indices: range) -> Sample:
        with torch.inference_mode(), matmul_precision(experiment.compute):
            e = noise(evaluation.seed, indices, shape, device)
            y = classes(evaluation.seed, indices, number, device) if number else None
            if y is not None and label is not None:
                y = torch.full_like(y, label)
            return decode(_sampled(conditioned(fast, experiment, y), experiment, e, indices))

    return generate


def conditioned(
    u: AverageVelocity, experiment: Experiment, y: Label | None
) -> tuple[AverageVelocity, Velocity]:
    """The network and its velocity, told the classes of a batch, if any, and how it is guided."""
    own = boundary_velocity(u)
    if y is None:
        return u, own
    known = y, *_guidance(experiment, y)
    return with_labels(u, *known), velocity_with_labels(own, *known)


def _guidance(experiment: Experiment, y: Label) -> tuple[Scalars | None, Tensor | None]:
    """1 - 1 / scale for each sample, and its interval; None for what is no input."""
    evaluation, model = experiment.evaluation, experiment.model
    if not model.guided:
        return None, None
    kappa = torch.full(y.shape, 1 - 1 / evaluation.guidance_scale, device=y.device)
    if not takes_interval(model):
        return kappa, None
    times = torch.tensor([evaluation.guidance_t_min, evaluation.guidance_t_max], device=y.device)
    return kappa, times.expand(len(y), 2)


def _sampled(
    functions: tuple[AverageVelocity, Velocity], experiment: Experiment, e: Sample, indices: range
) -> Sample:
    """Samples with these indices from noise ``e``, by the experiment's sampler."""
    steps, (u, own) = experiment.evaluation.sampling_steps, functions
    match experiment.evaluation.sampler:
        case "average":
            return sample(u, e, steps)
        case "euler":
            return euler(own, e, steps)
        case "heun":
            return heun(own, e, steps)
        case denoising:
            assert isinstance(experiment.loss, DDPM)
            if denoising == "ddim":
                return experiment.loss.ddim(own, e, steps)
            fresh = fresh_noise(experiment.evaluation.seed, indices, e)
            return experiment.loss.ancestral(own, e, fresh)


def fresh_noise(seed: int, indices: range, like: Sample) -> Callable[[], Sample]:
    """A function that draws new noise like ``like`` at each call, from a stream for each index."""
    streams = [generator(seed, "ancestral", i) for i in indices]

    def draw() -> Sample:
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in streams]).to(like)

    return draw


def protocol(experiment: Experiment) -> str:
    """The settings that two distances must share to be comparable, as text."""
    evaluation = experiment.evaluation
    how = "" if evaluation.sampler == "average" else f" {evaluation.sampler}"
    scale = f", guidance scale {evaluation.guidance_scale:g}" if experiment.model.guided else ""
    if takes_interval(experiment.model):
        scale += f" from t = {evaluation.guidance_t_min:g} to {evaluation.guidance_t_max:g}"
    data = experiment.original
    decoded = f", decoded by {data.decoder_name}" if isinstance(data, LatentSource) else ""
    return (
        f"{evaluation.distance.key}, {evaluation.sampling_steps}-step{how} samples{scale}, "
        f"moving average {experiment.ema}, evaluation seed {evaluation.seed}{decoded}"
    )


def distance(u: AverageVelocity, experiment: Experiment, workers: Workers) -> Metrics:
    """The experiment's distance between generated and real samples."""
    shape, measure = experiment.data.shape, experiment.evaluation.distance
    generate = generate_from(u, experiment, shape, workers.device)
    return measure(generate, experiment.reference_images, workers, experiment.evaluation.seed)


def loss_variance(
    u: AverageVelocity,
    v_hat: Velocity,
    beta: Beta | BetaAt,
    experiment: Experiment,
    workers: Workers,
) -> Metrics:
    """Mean over t of the variance over samples of the unweighted loss per dimension.

    Samples come from the test split; they and their noise, which couplings bring along, are the
    same for all runs. The loss is that of ``sample_losses``, or the objective's own if it has no
    landscape.
    """
    n, seed = experiment.evaluation.variance_samples, experiment.evaluation.seed
    rule = experiment.loss

    def found(draws: Draws, beta: Beta, uniform: Time) -> Scalars:
        if rule.has_landscape:
            return sample_losses(u, draws, beta, v_hat)
        return own_losses(rule, u, draws, beta, v_hat, uniform)

    losses_of = replayed(found, experiment.compute, workers.device)
    losses = torch.zeros(len(TIMES), n, dtype=torch.float64, device=workers.device)
    mine = slice(workers.rank, None, workers.world)
    for row, t in enumerate(TIMES):
        g = generator(seed, "loss_variance", row)
        x, own = draw_with_noise(experiment.data.load("test"), n, g)
        x, drawn = x.cpu(), torch.randn(x.shape, generator=g)
        e = drawn if own is None else own
        uniform = torch.rand(n, generator=g)[mine].to(workers.device)
        draws = evaluation_draws(x[mine].to(workers.device), e[mine].to(workers.device), t)
        with matmul_precision(experiment.compute):
            losses[row, mine] = losses_of(draws, _at(beta, draws), uniform)
    rows = [variance_with_error(row) for row in workers.sum(losses)]
    value = sum(v for v, _ in rows) / len(rows)
    error = sum(s * s for _, s in rows) ** 0.5 / len(rows)
    return {"loss_variance": Measurement(value, error)}


def gradient_variance(
    net: nn.Module,
    v_hat: Velocity,
    beta: float | BetaAt,
    experiment: Experiment,
    workers: Workers,
    at_once: int | None = None,
) -> Metrics:
    """Trace of the covariance of a batch's mean gradient, per parameter, unconditional.

    It is estimated from independent batches of the training's size with fresh data, noise and
    times. The loss is that of ``loss_variance``, unweighted and per dimension; the weights are the
    trained ones. A compiled run's gradients are computed as in its steps, ``at_once`` samples at a
    time; else they are in float32.
    """
    k, device = experiment.evaluation.gradient_batches, workers.device
    execution = Execution.of(experiment.compute, device)
    fast = {"u": execution.network(net), "size": at_once}
    as_trained: dict[str, Any] = fast if execution.duals else {}
    rule = experiment.loss

    def found(draws: Draws, beta: Beta, uniform: Time) -> Tensor:
        own_proxy = for_batch(v_hat, draws.x)
        if rule.has_landscape:
            return mean_gradient(net, draws, beta, own_proxy, **as_trained)
        return own_mean_gradient(rule, net, draws, beta, own_proxy, uniform, **as_trained)

    gradient_of = replayed(found, experiment.compute, device)
    size = sum(p.numel() for p in net.parameters())
    gradients = torch.zeros(k, size, device=device)
    for index in workers.mine(k):
        draws, uniform = _fresh(experiment, index, device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(experiment.evaluation.seed, "dropout", index))
            with execution.step(), execution.forward():
                gradients[index] = gradient_of(draws, _at(beta, draws), uniform)
    return {"gradient_variance": Measurement(*trace_with_error(workers.sum(gradients)))}


def _at(beta: Beta | BetaAt, draws: Draws) -> Beta:
    return beta(draws.t) if callable(beta) else beta


def _fresh(experiment: Experiment, index: int, device: torch.device) -> tuple[Draws, Time]:
    g = generator(experiment.evaluation.seed, "gradient_variance", index)
    x, own = draw_with_noise(experiment.data.load("train"), experiment.batch, g)
    (x, e, r, t, n_equal), uniform = draw(experiment, x, g, own)
    draws = Draws(x.to(device), e.to(device), r.to(device), t.to(device), n_equal)
    return draws, uniform.to(device)


def evaluate(trainer: Trainer) -> Metrics:
    """All metrics of a run at its current step, named ``eval/...``.

    A DDPM has only the distance: the other metrics are those of a velocity's loss.
    """
    e, workers, beta = trainer.experiment, trainer.workers, trainer.beta
    u = as_sampled(trainer.ema)
    measured = distance(u, e, workers)
    if e.loss.learns_velocity:  # the network's own velocity, whichever proxy trains it
        measured |= loss_variance(u, boundary_velocity(u), beta, e, workers)
        own = trainer.net, trainer.v_hat, beta, e, workers
        measured |= gradient_variance(*own, samples_beside(trainer))
    return {f"eval/{name}": measurement for name, measurement in measured.items()}
