"""How far a step's numbers are from float64's, in every precision, on the same draws."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vamf.diagnostics.variance import flat_gradient
from vamf.distributed import Workers
from vamf.experiment import Compute, Experiment
from vamf.flow.derivatives import textbook_derivative
from vamf.flow.duals import carrying
from vamf.flow.losses import Draws, MeanFlowLoss, path_derivative, path_pass
from vamf.flow.tangents import mix_tangent
from vamf.training.inference import load_trainer
from vamf.training.precision import allow, in_precision
from vamf.training.proxies import build_proxy
from vamf.training.trainer import Trainer
from vamf.typing import Beta, expand_like


class Deviation(NamedTuple):
    """Relative errors of a step against float64, and how its gradient lies to the exact one."""

    dudt: float
    """|c - c64| / |c64| of the correction c = (t - r) du/dt over the batch."""
    loss: float
    """|l - l64| / |l64|."""
    cosine: float
    """Cosine of the angle between the gradients."""
    norm: float
    """Norm of the gradient over that of the exact one."""

    def __str__(self) -> str:
        return (
            f"du/dt {self.dudt:.1e}  loss {self.loss:.1e}  "
            f"gradient cosine {self.cosine:.6f}, norm {self.norm:.5f}"
        )


PRECISIONS: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32", "tf32", "bfloat16")


def check(
    experiment: Experiment, checkpoint: Path | None, device: torch.device, compiled: bool
) -> dict[str, Deviation]:
    """The deviations of all precisions, by name: at initialisation, or at a checkpoint.

    ``compiled`` adds each of them compiled. The batch is ``experiment``'s.
    """
    if checkpoint is None:
        trainer = Trainer(experiment, experiment.data.load("train"), Workers(device=device))
    else:
        trainer = load_trainer(checkpoint, device, {"batch": experiment.batch})
    kinds = (False, True) if compiled else (False,)
    modes = {
        precision + ", compiled" * kind: Compute(precision=precision, compile=kind)
        for kind in kinds
        for precision in PRECISIONS
    }
    found = deviations(trainer, tuple(modes.values()))
    return {name: found[mode] for name, mode in modes.items()}


def told(found: Mapping[str, Deviation]) -> str:
    """A line for each mode."""
    return "\n".join(f"{name:20} {deviation}" for name, deviation in found.items())


def deviations(trainer: Trainer, modes: tuple[Compute, ...]) -> dict[Compute, Deviation]:
    """Compares modes at the trainer's weights, on the draws of its next step, without dropout.

    The exact step is computed in float64 by ``torch.func.jvp`` as it stands, for the whole batch.
    The trainer's precision is set again at the end. Raises ValueError for a loss with more terms.
    """
    loss = trainer.experiment.loss
    if trainer.experiment.guidance or loss != MeanFlowLoss(weight=loss.weight):
        raise ValueError("precisions are compared for a MeanFlowLoss with at most its weight set")
    draws, _ = trainer.objective.draw(trainer.step)
    beta = trainer.beta(draws.t)
    exact = _exact(trainer, draws, beta)
    found = {}
    for mode in modes:
        allow(mode)
        found[mode] = _deviation(_step(trainer, mode, draws, beta), exact)
    allow(trainer.experiment.compute)
    return found


class _Step(NamedTuple):
    correction: Tensor
    loss: Tensor
    gradient: Tensor


def _step(trainer: Trainer, mode: Compute, draws: Draws, beta: Beta) -> _Step:
    experiment, net, ema = trainer.experiment, trainer.net, trainer.ema
    v_hat = build_proxy(_in(experiment, mode), net, ema, trainer.workers.device)
    training = net.training
    net.eval()

    u = in_precision(net, mode)
    with carrying(mode.compile):
        derivative = path_pass if mode.compile else path_derivative  # as the loss takes it
        correction = derivative(u, draws, beta, v_hat)[2]
        loss = experiment.loss(u, draws, beta=beta, v_hat=v_hat).loss
    gradient = flat_gradient(loss, net.parameters())
    net.train(training)
    return _Step(correction, loss.detach(), gradient)


def _in(experiment: Experiment, mode: Compute) -> Experiment:
    return experiment.override(
        {"compute.precision": mode.precision, "compute.compile": mode.compile}
    )


def _exact(trainer: Trainer, draws: Draws, beta: Beta) -> _Step:
    """The textbook's step in float64: one jvp of the whole batch, u and its gradient apart."""
    experiment = trainer.experiment
    net, ema = (copy.deepcopy(n).double().eval() for n in (trainer.net, trainer.ema))
    x, e, r, t, n_equal = draws
    wide = Draws(x.double(), e.double(), r.double(), t.double(), n_equal)
    beta = beta.double() if isinstance(beta, Tensor) else beta
    v_hat = build_proxy(_in(experiment, Compute()), net, ema, trainer.workers.device)
    z, v_cond, _ = path_derivative(net, wide._replace(n_equal=len(wide.x)), beta, v_hat)
    v_tan = mix_tangent(v_cond, z, wide.t, beta, v_hat)
    with torch.no_grad():
        _, du_dt = textbook_derivative(net, z, wide.r, wide.t, v_tan)
        correction = expand_like(wide.t - wide.r, z) * du_dt
    error = (net(z, wide.r, wide.t) - (v_cond - correction)).square().flatten(1).sum(1)
    loss = (experiment.loss.weight(error) * error).mean()
    return _Step(correction, loss.detach(), flat_gradient(loss, net.parameters()))


def _deviation(step: _Step, exact: _Step) -> Deviation:
    correction, loss, gradient = (part.double() for part in step)
    return Deviation(
        dudt=((correction - exact.correction).norm() / exact.correction.norm()).item(),
        loss=((loss - exact.loss).abs() / exact.loss.abs()).item(),
        cosine=torch.cosine_similarity(gradient, exact.gradient, dim=0).item(),
        norm=(gradient.norm() / exact.gradient.norm()).item(),
    )
