"""The variance of the loss and of its gradient at a given beta."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vamf.dropout import Masks, sharing
from vamf.flow.objectives.meanflow import mean_flow_path, path_derivative
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, ObjectiveRule, squared_norm
from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The times t at which the loss variance is measured."""
GAP = 0.25
"""t - r at these times; r is at least 0."""
COLUMNS = 2**22
"""Entries of each gradient that are converted to float64 at a time."""
NUMBERS = 2**17
"""Numbers in the samples of one backward pass, 42 images of CIFAR-10: an eager step in float32 may
not fit a batch into memory that is trained in bfloat16, or by several workers."""


def evaluation_draws(x: Sample, e: Sample, t: float) -> Draws:
    """All samples at one time ``t``, with r = max(t - .25, 0)."""
    times = torch.full((len(x),), t, device=x.device)
    return Draws(x, e, (times - GAP).clamp_min(0), times)


def sample_losses(u: AverageVelocity, draws: Draws, beta: Beta, v_hat: Velocity) -> Scalars:
    """The unweighted loss |V(beta) - v_cond|^2 / d of each sample, (batch,), in float64.

    V(beta) = u + (t - r) du/dt along the mixed tangent (arXiv 2605.09235); d is a sample's size.
    """
    with torch.no_grad():
        z, v_cond, correction = path_derivative(u, draws, beta, v_hat)
        residual = u(z, draws.r, draws.t) + correction - v_cond
    return squared_norm(residual.double()) / residual[0].numel()


def own_losses(
    rule: ObjectiveRule,
    u: AverageVelocity,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    uniform: Time,
) -> Scalars:
    """The unweighted loss of an objective per dimension of each sample, (batch,), in float64.

    For objectives without a landscape, as at the end of training; ``uniform`` is (batch,) in
    [0, 1].
    """
    rule = _bare(rule)
    with torch.no_grad():
        terms = rule(u, draws, beta=beta, v_hat=v_hat, anchor_uniform=uniform, progress=1.0)
    return terms.squared_error.double() / draws.x[0].numel()


def variance_with_error(losses: Scalars) -> tuple[float, float]:
    """The unbiased variance of independent values (n,), n >= 4, and its standard error.

    Var(s^2) = (m4 - s^4 (n - 3) / (n - 1)) / n, with m4 the fourth central moment.
    """
    n, s2 = len(losses), losses.var()
    m4 = (losses - losses.mean()).pow(4).mean()
    spread = (m4 - s2.square() * (n - 3) / (n - 1)).clamp_min(0) / n
    return s2.item(), spread.sqrt().item()


def at_once(x: Sample) -> int:
    """How many of the samples ``x`` one backward pass contains."""
    return max(1, NUMBERS // x[0].numel())


def mean_gradient(
    net: nn.Module,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    *,
    u: AverageVelocity | None = None,
    size: int | None = None,
) -> Tensor:
    """The gradient of a batch's mean |V(beta) - v_cond|^2 / d, (parameters,), part by part.

    In training mode each sample has its own dropout masks, the same at every evaluation. ``u`` is
    the network as a function of (z, r, t), by default itself; ``size`` is the number of samples of
    a part, by default ``at_once``.
    """
    size = size or at_once(draws.x)
    total = torch.zeros((), device=draws.x.device)
    for part, own in zip(draws.parts(size), _betas(beta, size, len(draws.x)), strict=True):
        with sharing(Masks(len(part.x))):
            _, v_cond, correction, value = mean_flow_path(u or net, part, own, v_hat)
            residual = value + correction - v_cond
        loss = squared_norm(residual).sum() / (len(draws.x) * residual[0].numel())
        total = total + flat_gradient(loss, net.parameters())
    return total


def own_mean_gradient(
    rule: ObjectiveRule,
    net: nn.Module,
    draws: Draws,
    beta: Beta,
    v_hat: Velocity,
    uniform: Time,
    *,
    u: AverageVelocity | None = None,
    size: int | None = None,
) -> Tensor:
    """As ``mean_gradient``, of a batch's mean of ``own_losses``."""
    rule, size = _bare(rule), size or at_once(draws.x)
    total = torch.zeros((), device=draws.x.device)
    parts = draws.parts(size), _betas(beta, size, len(draws.x)), uniform.split(size)
    for part, own, numbers in zip(*parts, strict=True):
        with sharing(Masks(len(part.x))):
            given = {"beta": own, "v_hat": v_hat, "anchor_uniform": numbers}
            terms = rule(u or net, part, **given, progress=1.0)
        loss = terms.loss * (len(part.x) / draws.x.numel())
        total = total + flat_gradient(loss, net.parameters())
    return total


def _betas(beta: Beta, size: int, n: int) -> Sequence[Beta]:
    """Those of each part of at most ``size`` of ``n`` samples."""
    return beta.split(size) if isinstance(beta, Tensor) else [beta] * -(-n // size)


def _bare(rule: ObjectiveRule) -> ObjectiveRule:
    """The objective without weights of samples and an anchor."""
    bare = {"weight": AdaptiveWeight(), "trace": None, "anchor": None}
    own = {f.name for f in dataclasses.fields(rule)}  # type: ignore[arg-type]
    return dataclasses.replace(  # type: ignore[type-var]
        rule, **{name: value for name, value in bare.items() if name in own}
    )


def flat_gradient(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The gradient of ``loss`` as one vector, (parameters,); 0 where it does not depend on one."""
    gradients = torch.autograd.grad(loss, list(parameters), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def trace_with_error(gradients: Tensor) -> tuple[float, float]:
    """Trace of the covariance of gradients (K, P) over K >= 2 batches, per parameter.

    trace = sum_k |g_k - mean|^2 / (K - 1) / P. The standard error is a jackknife over batches; it
    needs K >= 3 and is NaN below. Without g_k the sum is smaller by K / (K - 1) |g_k - mean|^2.
    """
    k, parameters = gradients.shape
    norms = torch.zeros(k, dtype=torch.float64, device=gradients.device)
    for columns in gradients.split(COLUMNS, dim=1):
        norms += (columns.double() - columns.double().mean(0)).square().sum(1)
    total = norms.sum() / (k - 1) / parameters
    if k < 3:
        return total.item(), float("nan")
    without = (norms.sum() - norms * k / (k - 1)) / (k - 2) / parameters
    error = ((k - 1) / k * (without - without.mean()).square().sum()).sqrt()
    return total.item(), error.item()
