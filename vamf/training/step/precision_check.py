"""Compares a step in each precision with the same step in float64, on the same draws."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vamf.diagnostics.variance import flat_gradient
from vamf.experiment import Experiment
from vamf.experiment_settings import Compute
from vamf.flow.derivatives import textbook_derivative
from vamf.flow.duals import dual_mode
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss
from vamf.flow.objectives.meanflow import MeanFlowLoss, path_derivative, path_pass
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terms import Draws, ObjectiveRule
from vamf.flow.oracle import for_batch
from vamf.flow.tangents import mix_tangent
from vamf.models.recomputation import recomputing
from vamf.training.step.precision import in_precision, matmul_precision
from vamf.training.step.proxies import build_proxy
from vamf.training.step.trainer import Trainer
from vamf.typing import Beta, Velocity, expand_like


class Deviation(NamedTuple):
    """Relative errors of a step against float64, and the direction and size of its gradient."""

    dudt: float
    """|c - c64| / |c64| of the correction c = (t - r) du/dt over the batch."""
    loss: float
    """|l - l64| / |l64|."""
    cosine: float
    """Cosine of the angle between the gradients."""
    norm: float
    """Norm of the gradient divided by the norm of the float64 gradient."""

    def __str__(self) -> str:
        return (
            f"du/dt {self.dudt:.1e}  loss {self.loss:.1e}  "
            f"gradient cosine {self.cosine:.6f}, norm {self.norm:.5f}"
        )


PRECISIONS: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32", "tf32", "bfloat16")


def check(trainer: Trainer, compiled: bool) -> dict[str, Deviation]:
    """The deviations of all precisions, by name; ``compiled`` adds each of them compiled."""
    kinds = (False, True) if compiled else (False,)
    modes = {
        precision + ", compiled" * kind: Compute(precision=precision, compile=kind)
        for kind in kinds
        for precision in PRECISIONS
    }
    found = deviations(trainer, tuple(modes.values()))
    return {name: found[mode] for name, mode in modes.items()}


def format_deviations(found: Mapping[str, Deviation]) -> str:
    """One line for each mode."""
    return "\n".join(f"{name:20} {deviation}" for name, deviation in found.items())


def deviations(trainer: Trainer, modes: tuple[Compute, ...]) -> dict[Compute, Deviation]:
    """Compares modes at the trainer's weights, on the draws of its next step, without dropout.

    The float64 step uses plain ``torch.func.jvp`` on the whole batch. A guided network is compared
    without labels. Raises ValueError for a loss with more terms, and for a DDPM's.
    """
    loss = trainer.experiment.loss
    if not isinstance(loss, MeanFlowLoss) or loss != MeanFlowLoss(weight=loss.weight):
        raise ValueError(
            f"precisions are compared for a MeanFlowLoss with at most its weight set; got {loss}"
        )
    draws, _ = trainer.objective.draw(trainer.step)
    beta = trainer.beta(draws.t)
    exact = _exact(trainer, draws, beta, loss)
    found = {}
    for mode in modes:
        found[mode] = _deviation(_step(trainer, mode, draws, beta, loss), exact)
    return found


class _Step(NamedTuple):
    correction: Tensor
    loss: Tensor
    gradient: Tensor
    """The gradient of all parameters, flattened."""


def _step(trainer: Trainer, mode: Compute, draws: Draws, beta: Beta, rule: MeanFlowLoss) -> _Step:
    experiment, net, ema = trainer.experiment, trainer.net, trainer.ema
    v_hat = _proxy(experiment, mode, net, ema, draws)
    training = net.training
    net.eval()

    u = in_precision(net, mode)
    with matmul_precision(mode):
        with dual_mode(mode.compile), recomputing(mode.checkpointing):
            derivative = path_pass if mode.compile else path_derivative  # as the loss takes it
            correction = derivative(u, draws, beta, v_hat)[2]
            loss = rule(u, draws, beta=beta, v_hat=v_hat).loss
        gradient = flat_gradient(loss, net.parameters())
    net.train(training)
    return _Step(correction, loss.detach(), gradient)


def _proxy(
    experiment: Experiment, mode: Compute, net: nn.Module, ema: nn.Module, draws: Draws
) -> Velocity:
    """The proxy of a step in a mode, whose whole batch is ``draws``."""
    within = {"compute.precision": mode.precision, "compute.compile": mode.compile}
    v_hat = build_proxy(experiment.override(within), net, ema, draws.x.device)
    return for_batch(v_hat, draws.x)


def _exact(
    trainer: Trainer,
    draws: Draws,
    beta: Beta,
    rule: MeanFlowLoss,
    counts: Tensor | None = None,
) -> _Step:
    """The reference step in float64: one jvp of the whole batch; u and its gradient separately.

    Each sample has weight 1, or the weight in ``counts``.
    """
    experiment = trainer.experiment
    net, ema = (copy.deepcopy(n).double().eval() for n in (trainer.net, trainer.ema))
    x, e, r, t, n_equal = draws
    wide = Draws(x.double(), e.double(), r.double(), t.double(), n_equal)
    beta = beta.double() if isinstance(beta, Tensor) else beta
    v_hat = _proxy(experiment, Compute(), net, ema, wide)
    z, v_cond, _ = path_derivative(net, wide._replace(n_equal=len(wide.x)), beta, v_hat)
    v_tan = mix_tangent(v_cond, z, wide.t, beta, v_hat)
    correction = torch.zeros_like(z)
    if n_equal < len(x):  # a network without forward mode may be trained where r = t
        with torch.no_grad():
            _, du_dt = textbook_derivative(net, z, wide.r, wide.t, v_tan)
            _require_central_difference(net, wide, z, v_tan, du_dt)
            correction = expand_like(wide.t - wide.r, z) * du_dt
    error = (net(z, wide.r, wide.t) - (v_cond - correction)).square().flatten(1).sum(1)
    counts = torch.ones_like(error) if counts is None else counts.to(error)
    loss = (rule.weight(error) * error * counts).sum() / counts.sum()
    return _Step(correction, loss.detach(), flat_gradient(loss, net.parameters()))


def _require_central_difference(
    net: nn.Module, draws: Draws, z: Tensor, v_tan: Tensor, du_dt: Tensor
) -> None:
    """Raises ValueError unless du/dt is close to (u(t + h) - u(t - h)) / 2h where r < t."""
    n, h = draws.n_equal, 1e-4
    z, v_tan, r, t = z[n:], v_tan[n:], draws.r[n:], draws.t[n:]
    difference = (net(z + h * v_tan, r, t + h) - net(z - h * v_tan, r, t - h)) / (2 * h)
    apart = (difference - du_dt[n:]).norm() / difference.norm()
    if apart > 1e-2:  # False for NaN; the truncation error is h^2 / 6 of the third derivative
        raise ValueError(
            f"the network's derivative must be that of its values; they differ by {apart:.1e}"
        )


BOUNDS = {"float32": (1e-3, 1e-4), "tf32": (0.05, 0.02), "bfloat16": (0.2, 0.1)}
"""By precision: the largest error of du/dt, and the largest 1 - median cosine of gradients."""
TRIED = 2
"""Number of samples with r = t, and of samples with r < t, in the self-test."""


def self_test(trainer: Trainer) -> None:
    """Raises ValueError unless steps in the experiment's precision agree with float64.

    The batch has a micro-batch's size and repeats a few samples of the next batch; beta is 0 and
    there is no dropout. du/dt is left out where steps have no derivative. Skipped for an uncompiled
    run in float32, which uses the reference's formulas, and for a DDPM.
    """
    mode, experiment = trainer.experiment.compute, trainer.objective.experiment
    plain = mode.precision == "float32" and not mode.compile
    if plain or not experiment.loss.learns_velocity:
        return
    draws = trainer.objective.draw(trainer.step)[0].every(trainer.micro_batches)
    if not _differentiates(experiment.loss):
        draws = draws._replace(r=draws.t, n_equal=len(draws.x))
    n, size, clipped = draws.n_equal, len(draws.x), (draws.r == draws.t).tolist()
    apart = sorted(range(n, size), key=clipped.__getitem__)[:TRIED]  # the clipped ones last
    chosen = [*range(min(n, TRIED)), *apart]
    equal, rest = len(chosen) - len(apart), len(apart)
    of = [k % equal for k in range(n)] + [equal + k % rest for k in range(size - n)]
    few = _taken(draws, chosen, equal)
    counts = torch.bincount(torch.tensor(of), minlength=len(chosen))
    rule = MeanFlowLoss(weight=experiment.loss.weight)
    exact = _exact(trainer, few, 0.0, rule, counts.to(draws.x.device))
    step = _step(trainer, mode, _taken(few, of, n), 0.0, rule)
    first = [of.index(k) for k in range(len(chosen))]
    found = _deviation(step._replace(correction=step.correction[first]), exact)
    dudt, angle = BOUNDS[mode.precision]
    cosine = _median_cosine(step.gradient, exact.gradient, trainer.net)
    moves = bool((few.r < few.t).any())
    if not (found.dudt <= dudt or not moves) or not cosine >= 1 - angle:
        raise ValueError(
            f"a step in {mode.precision}{', compiled' * mode.compile} must be that of float64 to "
            f"du/dt {dudt:g} and a median cosine of {1 - angle:g} of parameters' gradients; here "
            f"it has {found.dudt:.1e} and {cosine:.4f}; train with --compute.precision float32 "
            "--compute.no-compile"
        )


def _differentiates(loss: ObjectiveRule) -> bool:
    """Whether steps may take a derivative in forward mode, of which a network may have none."""
    match loss:
        case SemigroupLoss():
            return False
        case MeanFlowLoss():
            return loss.difference is None
        case AlphaFlowLoss():
            return not loss.alpha.value  # a curriculum ends at 0, MeanFlow
    return True


def _median_cosine(gradient: Tensor, exact: Tensor, net: nn.Module) -> float:
    """The median over parameters of the cosine between gradients.

    The cosine of the whole gradient would hide errors at first: the output layer dominates it. The
    smallest cosine is unsuitable: a parameter's gradient may nearly cancel.
    """
    sizes = [p.numel() for p in net.parameters()]
    pairs = zip(gradient.double().split(sizes), exact.split(sizes), strict=True)
    found = [torch.cosine_similarity(a, b, dim=0, eps=0).item() for a, b in pairs if b.any()]
    # NaN if any cosine is NaN; sorting would place NaN anywhere.
    return torch.tensor(found, dtype=torch.float64).quantile(0.5).item()


def _taken(draws: Draws, places: Sequence[int], n_equal: int) -> Draws:
    x, e, r, t = (part[list(places)] for part in draws[:4])
    return Draws(x, e, r, t, n_equal)


def _deviation(step: _Step, exact: _Step) -> Deviation:
    correction, loss, gradient = (part.double() for part in step)
    return Deviation(
        dudt=((correction - exact.correction).norm() / exact.correction.norm()).item(),
        loss=((loss - exact.loss).abs() / exact.loss.abs()).item(),
        cosine=torch.cosine_similarity(gradient, exact.gradient, dim=0).item(),
        norm=(gradient.norm() / exact.gradient.norm()).item(),
    )
