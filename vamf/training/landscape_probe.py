"""Probes the beta landscape of a network during training, or of a checkpoint."""

from dataclasses import fields

import torch
from torch import nn

from vamf.data.dataset import draw_with_noise
from vamf.diagnostics.landscape import Landscape, ProbeMoments
from vamf.diagnostics.probe import Probe, ProbeTarget, probe_pair
from vamf.diagnostics.ratios import ratios
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.objectives.terms import Draws
from vamf.flow.trace import draw_signs
from vamf.rng import generator, seed_of
from vamf.training.step.objective import draw
from vamf.training.step.precision import matmul_precision
from vamf.typing import AverageVelocity, BetaAt, Estimates, Velocity

EXACT, SIGNS = 16, 8
"""Jacobians are exact for samples of up to EXACT numbers, else estimated by SIGNS sign vectors."""


def probe(
    experiment: Experiment,
    net: nn.Module,
    v_hat: Velocity,
    beta: BetaAt,
    workers: Workers,
    *,
    plan: Probe,
    step: int,
) -> Landscape:
    """Measures the landscape of the current weights, on all workers together.

    Random streams are keyed by the evaluation's seed and the step, so a probe does not change
    training. All workers get the same result. Raises ValueError for an objective without a
    landscape.
    """
    _require_velocity(experiment)
    if not experiment.loss.has_landscape:
        raise ValueError(
            f"a landscape needs a loss |u + (t - r) du/dt - v_cond|^2; got {experiment.loss}"
        )
    velocity = experiment.data.velocity() if experiment.data.has_exact_velocity else None
    weight = (experiment.loss.weight, beta) if plan.weighted else None
    tables = ProbeMoments.zeros(plan.pairs, plan.bins, workers.device)
    for index in workers.mine(plan.pairs):
        key = (experiment.evaluation.seed, "probe", step, index)
        probed = ProbeTarget(net, list(net.parameters()), v_hat, velocity, weight)
        a, b = (_fresh(experiment, (*key, k), workers.device) for k in range(2))
        signs = generator(*key, "signs", device=workers.device)
        with torch.random.fork_rng([workers.device] if workers.device.type == "cuda" else []):
            torch.manual_seed(seed_of(*key, "dropout"))
            with matmul_precision(experiment.compute):
                found = probe_pair(probed, (a, b), plan.edges, signs)
        for field in fields(ProbeMoments):
            getattr(tables, field.name)[index] = getattr(found, field.name)[0]
    tables = tables.map(workers.sum)
    return Landscape(tables, plan.edges, experiment.batch, velocity is not None)


def probe_ratios(
    experiment: Experiment, u: AverageVelocity, device: torch.device, samples: int
) -> Estimates:
    """Variance ratio, Jacobian and curvature of a network on test data (``diagnostics.ratios``).

    Data and noise depend only on the evaluation's seed. Raises ValueError for fewer than 4 samples,
    and for a DDPM.
    """
    _require_velocity(experiment)
    if samples < 4:
        raise ValueError(f"ratios need at least 4 samples for their errors; got {samples}")
    g = generator(experiment.evaluation.seed, "ratios")
    x, own = draw_with_noise(experiment.data.load("test"), samples, g)
    x, drawn = x.cpu(), torch.randn(x.shape, generator=g)
    e = drawn if own is None else own
    signs = None if x[0].numel() <= EXACT else draw_signs((SIGNS, *x.shape), g).to(device)
    with matmul_precision(experiment.compute):
        return ratios(u, x.to(device), e.to(device), signs)


def _require_velocity(experiment: Experiment) -> None:
    if not experiment.loss.learns_velocity:
        raise ValueError("a landscape needs a network that learns a velocity; got a DDPM's")


def _fresh(experiment: Experiment, key: tuple[int | str, ...], device: torch.device) -> Draws:
    """A batch drawn as in training, from its own random stream."""
    g = generator(*key)
    x, own = draw_with_noise(experiment.data.load("train"), experiment.batch, g)
    (x, e, r, t, n_equal), _ = draw(experiment, x, g, own)
    return Draws(x.to(device), e.to(device), r.to(device), t.to(device), n_equal)
