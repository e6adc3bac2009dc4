"""Weights samples by how much their residual amplifies the noise of the tangent."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vamf.flow.derivatives import exact_trace, hutchinson_trace
from vamf.typing import AverageVelocity, Sample, Scalars, Time

Sigma = Literal["constant", "linear", "quadratic", "bridge", "path"]


@dataclass(frozen=True, kw_only=True)
class TraceWeight:
    """w = 1 / (1 + sigma_t^2 sg[Tr(J J^T)] / d), J = (t - r) du/dz - I (arXiv 2605.09235, code).

    The noise Sigma of v_cond adds Tr(J Sigma J^T) to the loss, about sigma_t^2 Tr(J J^T); d is the
    dimension of a sample. J is -I at r = t, where w = 1 / (1 + sigma_t^2) without a derivative. A
    learned sigma_t is not offered: w passes no gradient, so it would not learn.
    """

    sigma: Sigma = "linear"
    """sigma_t / scale: 1, t, t^2, sqrt(t (1 - t)) (bridge) or 1 / sqrt((1 - t)^2 + t^2) (path)."""
    scale: float = 1.0
    """Factor of sigma_t, at least 0; 0 gives all samples the same weight."""
    probes: int = 1
    """Random directions for the trace, at least 0; 0 computes it exactly, along every axis."""

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"the trace weight's scale must be at least 0; got {self.scale}")
        if self.probes < 0:
            raise ValueError(f"the trace weight's probes must be at least 0; got {self.probes}")

    def noise(self, t: Time) -> Scalars:
        """sigma_t, (batch,)."""
        match self.sigma:
            case "constant":
                shape = torch.ones_like(t)
            case "linear":
                shape = t
            case "quadratic":
                shape = t.square()
            case "bridge":
                shape = (t * (1 - t)).sqrt()
            case "path":
                shape = ((1 - t).square() + t.square()).rsqrt()
        return self.scale * shape

    def trace(
        self, u: AverageVelocity, z: Sample, r: Time, t: Time, n_equal: int, signs: Tensor | None
    ) -> Scalars:
        """Tr(J J^T) / d of each sample, (batch,); the first ``n_equal`` have r = t, where it is 1.

        ``signs`` are +1 or -1, (probes, batch, ...). No graph is kept.
        """
        if self.probes and (signs is None or len(signs) != self.probes):
            raise ValueError(
                f"the trace weight needs signs for {self.probes} probes; "
                f"got {None if signs is None else len(signs)}"
            )
        n, ones = n_equal, torch.ones_like(t[:n_equal])
        if n == len(z):
            return ones
        with torch.no_grad():
            if signs is not None and self.probes:
                trace = hutchinson_trace(u, z[n:], r[n:], t[n:], signs[:, n:])
            else:
                trace = exact_trace(u, z[n:], r[n:], t[n:])
        return torch.cat([ones, trace / z[0].numel()])

    def __call__(self, trace: Scalars, t: Time) -> Scalars:
        """The weight of each sample, from Tr(J J^T) / d."""
        return 1 / (1 + self.noise(t).square() * trace.detach())


def draw_signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent numbers, +1 or -1 with probability 1/2 each, in float32."""
    bits = torch.randint(2, shape, generator=generator, device=generator.device)
    return 2 * bits.float() - 1
