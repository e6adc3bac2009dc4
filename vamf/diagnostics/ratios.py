"""Variance ratio, Jacobian and curvature of arXiv 2605.09235, which show why the tangent matters.

All describe one network u on given data and noise; a pair is a value and its standard error over
samples.
"""

import torch
from torch import Tensor

from vamf.diagnostics.variance import (
    TIMES,
    evaluation_draws,
    sample_losses,
    variance_with_error,
)
from vamf.flow.derivatives import amplification, axes
from vamf.flow.objectives.terms import Draws, squared_norm
from vamf.flow.path import interpolate
from vamf.flow.tangents import boundary_velocity
from vamf.typing import AverageVelocity, Estimates, Sample, Scalars

CURVATURE_TIMES = (0.3, 0.5, 0.7, 0.9)
"""The times t at which the curvature is measured."""
GAPS, LARGEST_GAP = 12, 0.45
"""The number of gaps t - r, from .01 up, and the largest gap; r stays above 0."""


def ratios(u: AverageVelocity, x: Sample, e: Sample, signs: Tensor | None = None) -> Estimates:
    """All values by name, of at least 4 samples of data ``x`` and noise ``e``, (batch, ...).

    ``variance_ratio/t0.5``, ``jacobian_norm/t0.5``, ``jacobian_std/t0.5`` and ``kappa/t0.5`` at
    the times and the gap of the loss variance; ``curvature/t0.5_gap0.250`` at its own. The Jacobian
    is exact without ``signs``; with many axes take ``signs``, +1 or -1, (probes, batch, ...).
    """
    found: dict[str, tuple[float, float]] = {}
    for t in TIMES:
        draws = evaluation_draws(x, e, t)
        found[f"variance_ratio/t{t:.1f}"] = variance_ratio(u, draws)
        for name, pair in jacobian(u, draws, signs).items():
            found[f"{name}/t{t:.1f}"] = pair
    for t in CURVATURE_TIMES:
        for gap in gaps(t):
            found[f"curvature/t{t:.1f}_gap{gap:.3f}"] = curvature(u, x, e, t, gap)
    return found


def variance_ratio(u: AverageVelocity, draws: Draws) -> tuple[float, float]:
    """Loss variance with the tangent v_cond over that with the network's own velocity u(z, t, t).

    Both use the same samples (experiment 1); the error accounts for their correlation.
    """
    own = boundary_velocity(u)
    noisy, quiet = (sample_losses(u, draws, beta, own) for beta in (0.0, 1.0))
    ratio = noisy.var() / quiet.var()
    # Each sample's contribution to the logarithm of the ratio, to first order.
    influence = _deviation(noisy) - _deviation(quiet)
    return ratio.item(), (ratio * influence.std() / len(noisy) ** 0.5).item()


def jacobian(
    u: AverageVelocity, draws: Draws, signs: Tensor | None = None
) -> dict[str, tuple[float, float]]:
    """Mean and deviation of sqrt(Tr(J J^T)), and kappa = E<s, J s> / d, of J = (t - r) du/dz - I.

    kappa, the mean eigenvalue, has a sign (experiment 4 uses the norm alone). With few probes the
    square root of the estimated trace is biased downwards.
    """
    trace, product = _moments(u, draws, signs)
    norm, dim = trace.sqrt(), draws.x[0].numel()
    variance, error = variance_with_error(norm)
    deviation = variance**0.5
    return {
        "jacobian_norm": _mean(norm),
        "jacobian_std": (deviation, error / (2 * deviation) if deviation else 0.0),
        "kappa": _mean(product / dim),
    }


def gaps(t: float) -> list[float]:
    """The gaps t - r of the curvature at a time, ascending."""
    return torch.linspace(0.01, min(t - 1e-4, LARGEST_GAP), GAPS, dtype=torch.float64).tolist()


def curvature(
    u: AverageVelocity, x: Sample, e: Sample, t: float, gap: float
) -> tuple[float, float]:
    """E|u(z, t - gap, t) - v_cond|^2, summed over the data's axes (experiment 2).

    Includes the noise of v_cond, which does not depend on the gap: only the growth is curvature.
    """
    times = torch.full((len(x),), t, device=x.device, dtype=x.dtype)
    z, v_cond = interpolate(x, e, times)
    with torch.no_grad():
        return _mean(squared_norm(u(z, times - gap, times) - v_cond))


def _moments(u: AverageVelocity, draws: Draws, signs: Tensor | None) -> tuple[Scalars, Scalars]:
    """Tr(J J^T) and Tr J of each sample: sums over all axes, or means over random signs."""
    z, _ = interpolate(draws.x, draws.e, draws.t)
    probes = list(axes(z)) if signs is None else list(signs)
    with torch.no_grad():
        moved = [amplification(u, z, draws.r, draws.t, probe) for probe in probes]
    traces = torch.stack([squared_norm(m.double()) for m in moved]).sum(0)
    products = [(p * m).double().flatten(1).sum(1) for p, m in zip(probes, moved, strict=True)]
    share = 1 if signs is None else len(signs)
    return traces / share, torch.stack(products).sum(0) / share


def _deviation(losses: Scalars) -> Scalars:
    return (losses - losses.mean()).square() / losses.var()


def _mean(values: Scalars) -> tuple[float, float]:
    values = values.double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()
