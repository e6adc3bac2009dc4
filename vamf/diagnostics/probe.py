"""Measures the tables of a beta landscape from pairs of independent batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vamf.diagnostics.landscape import SCALARS, ProbeMoments
from vamf.diagnostics.variance import COLUMNS, at_once
from vamf.dropout import Masks, sharing
from vamf.flow.derivatives import directional_derivative
from vamf.flow.objectives.meanflow import path_derivative
from vamf.flow.objectives.terms import AdaptiveWeight, Draws, squared_norm
from vamf.flow.oracle import for_batch
from vamf.typing import AverageVelocity, BetaAt, Sample, Scalars, Velocity, expand_like


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a beta landscape is measured."""

    every: int = 1000
    """Steps between landscapes while training."""
    pairs: int = 8
    """Pairs of independent batches of the training's size, at least 2; errors are over pairs."""
    bins: int = 5
    """Equal bins of t in [0, 1]."""
    weighted: bool = False
    """Give samples the adaptive weights of the loss at the run's own beta; otherwise none."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.bins < 1:
            raise ValueError(
                f"a probe needs every and bins of at least 1; got {self.every} and {self.bins}"
            )
        if self.pairs < 2:
            raise ValueError(f"a variance needs at least 2 pairs of batches; got {self.pairs}")

    @property
    def edges(self) -> tuple[float, ...]:
        """Edges of the bins, from 0 to 1."""
        return tuple(k / self.bins for k in range(self.bins + 1))


class ProbeTarget(NamedTuple):
    """The network that is probed, with its proxy and weights."""

    u: AverageVelocity
    """The network that is trained."""
    parameters: Sequence[nn.Parameter]
    """Its parameters."""
    v_hat: Velocity
    """The proxy."""
    velocity: Velocity | None = None
    """The exact marginal velocity, if it is known."""
    weight: tuple[AdaptiveWeight, BetaAt] | None = None
    """The loss's weight, taken at this beta; None for an unweighted gradient."""


class _Residuals(NamedTuple):
    """One batch's residual a + beta D and its parts, all (batch, ...), without gradients."""

    z: Sample
    at_zero: Sample
    """a = V(0) - v_cond."""
    slope: Sample
    """D = A (v_hat - v_cond), A = (t - r) du/dz."""
    bias: Sample
    """A b, b = v_hat - v; if v is not known, D, which has the same mean."""
    noise: Sample | None
    """v' = v_cond - v."""
    response: Sample | None
    """A v'."""


def probe_pair(
    given: ProbeTarget,
    pair: tuple[Draws, Draws],
    edges: Sequence[float],
    generator: torch.Generator,
) -> ProbeMoments:
    """The tables of one pair, with a first axis of size 1.

    A proxy of the batch is made of each of the two. ``generator``, on the draws' device, draws
    random signs; torch's default random state changes only if the network draws dropout masks from
    it. In training mode each sample has its own masks, the same at every evaluation, so that the
    residual stays affine in beta.
    """
    vectors, tables = [], []
    for draws in pair:
        probed = given._replace(v_hat=for_batch(given.v_hat, draws.x))
        masks = Masks(len(draws.x))
        with sharing(masks):
            residuals, scalars = _residuals(probed, draws, generator)
        where = _membership(draws, edges)
        vectors.append(_gradients(probed, draws, residuals, where, masks))
        losses = _loss_tables(residuals, where)
        conditional = _conditional(probed, draws, residuals, where, masks, generator)
        tables.append((*losses, conditional, scalars))
    half = (vectors[0] - vectors[1]) / 2**0.5
    crossed = gram(*vectors)
    count, first, second, conditional, scalars = ((a + b) / 2 for a, b in zip(*tables, strict=True))
    found = (count, first, second, gram(half, half), (crossed + crossed.T) / 2)
    return ProbeMoments(*(table[None] for table in (*found, conditional, scalars)))


def gram(a: Tensor, b: Tensor) -> Tensor:
    """All inner products of the rows of two matrices, in float64."""
    parts = zip(a.split(COLUMNS, dim=1), b.split(COLUMNS, dim=1), strict=True)
    return sum((x.double() @ y.double().T for x, y in parts), start=torch.zeros(()).to(a.device))


def _residuals(
    probed: ProbeTarget, draws: Draws, generator: torch.Generator
) -> tuple[_Residuals, Tensor]:
    u, n = probed.u, draws.n_equal
    r, t = draws.r[n:], draws.t[n:]

    def response(z: Sample, direction: Sample) -> Sample:
        """A times a direction, 0 where r = t."""
        moved = torch.zeros_like(z)
        if n < len(z):
            derivative = directional_derivative(u, z[n:], r, t, direction[n:])
            moved[n:] = expand_like(t - r, z) * derivative
        return moved

    with torch.no_grad():
        z, v_cond, correction = path_derivative(u, draws, 0.0, probed.v_hat)
        at_zero = u(z, draws.r, draws.t) + correction - v_cond
        v_hat = probed.v_hat(z, draws.t)
        slope = response(z, v_hat - v_cond)
        own_noise = v_cond - u(z, draws.t, draws.t)
        own = response(z, own_noise)
        signs = torch.empty_like(z).bernoulli_(0.5, generator=generator) * 2 - 1
        kappa = _inner(signs, response(z, signs)) / z[0].numel()
        noise = v = None
        if probed.velocity is not None:
            v = probed.velocity(z, draws.t)
            noise = v_cond - v
        moved = None if noise is None else response(z, noise)
    bias = slope if moved is None else slope + moved
    residuals = _Residuals(z, at_zero, slope, bias, noise, moved)
    interior = (draws.r < draws.t).to(kappa)  # times may be equal behind the first n, too
    empty = torch.zeros_like(kappa)
    exact = [empty] * 3
    if noise is not None and moved is not None and v is not None:
        exact = [squared_norm(noise), squared_norm(v_hat - v), _inner(moved - noise, slope)]
    rows = [interior, kappa, *exact, squared_norm(slope), _inner(own_noise, own), squared_norm(own)]
    assert len(rows) == len(SCALARS)
    return residuals, torch.stack(rows).double().mean(1)


def _inner(a: Sample, b: Sample) -> Scalars:
    return (a * b).flatten(1).sum(1)


def _membership(draws: Draws, edges: Sequence[float]) -> Tensor:
    """Which samples are in which bin, (J, batch) booleans."""
    inner = torch.tensor(edges[1:-1], device=draws.t.device, dtype=draws.t.dtype)
    bins = torch.arange(len(edges) - 1, device=draws.t.device)
    return torch.bucketize(draws.t, inner, right=True) == bins[:, None]


def _loss_tables(residuals: _Residuals, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, d, size = residuals.at_zero, residuals.slope, residuals.z[0].numel()
    rows = torch.stack([squared_norm(a), 2 * _inner(a, d), squared_norm(d)], 1).double() / size
    member = where.to(rows) / len(rows)
    return member.sum(1), member @ rows, torch.einsum("jn,na,nb->jab", member, rows, rows)


def _gradients(
    probed: ProbeTarget, draws: Draws, residuals: _Residuals, where: Tensor, masks: Masks
) -> Tensor:
    """Each bin's part of the batch's gradients g0, gD and g(A b), (3 J, parameters)."""
    a, d = residuals.at_zero, residuals.slope
    weight = torch.ones_like(draws.t)
    if probed.weight is not None:
        rule, beta = probed.weight[0], probed.weight[1](draws.t)
        shaped = expand_like(beta, a) if isinstance(beta, Tensor) else beta
        weight = rule(squared_norm(a + shaped * d))
    scale = expand_like(weight, a) * (2 / (len(a) * a[0].numel()))
    seeds = torch.stack([scale * part for part in (a, d, residuals.bias)])
    return _pull_back(probed, draws, residuals.z, seeds, where, masks).flatten(0, 1)


def _conditional(
    probed: ProbeTarget,
    draws: Draws,
    residuals: _Residuals,
    where: Tensor,
    masks: Masks,
    generator: torch.Generator,
) -> Tensor:
    """Means over samples of the products of g J v', g A v' and g A b, (J, 3, 3).

    With random signs, one backward pass of the sum estimates the mean of all samples' squares.
    """
    noise, moved = residuals.noise, residuals.response
    if noise is None or moved is None:
        unknown = torch.full((len(where), 3, 3), float("nan"), dtype=torch.float64)
        return unknown.to(where.device)
    signs = torch.empty_like(draws.t).bernoulli_(0.5, generator=generator) * 2 - 1
    scale = expand_like(signs, noise) * (2 / noise[0].numel())
    seeds = torch.stack([scale * part for part in (moved - noise, moved, residuals.bias)])
    pulled = _pull_back(
        probed, draws, residuals.z, seeds, where, masks
    ).double()  # (3, J, parameters)
    return torch.einsum("ajp,bjp->jab", pulled, pulled) / len(noise)


def _pull_back(
    probed: ProbeTarget, draws: Draws, z: Sample, seeds: Tensor, where: Tensor, masks: Masks
) -> Tensor:
    """The sums of seed du/dtheta over the samples of each bin, (seeds, J, parameters)."""
    size = sum(p.numel() for p in probed.parameters)
    pulled = torch.zeros(len(seeds), len(where), size, device=z.device, dtype=z.dtype)
    for bin, mine in enumerate(where):
        for part in mine.nonzero().flatten().split(at_once(z)):
            if not len(part):
                continue
            with sharing(masks.at(part)):
                value = probed.u(z[part], draws.r[part], draws.t[part])
            for row, seed in enumerate(seeds[:, part]):
                gradients = torch.autograd.grad(
                    value, list(probed.parameters), seed, retain_graph=True, allow_unused=True
                )
                flat = [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for g, p in zip(gradients, probed.parameters, strict=True)
                ]
                pulled[row, bin] += torch.cat(flat)
    return pulled
