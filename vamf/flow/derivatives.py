"""The total derivative along the path: the only place that calls ``torch.func.jvp``."""

import torch

from vamf.typing import AverageVelocity, Sample, Time


def total_derivative(
    u: AverageVelocity, z: Sample, r: Time, t: Time, v_tan: Sample
) -> tuple[Sample, Sample]:
    """Returns u(z, r, t) and its total derivative in t (arXiv 2505.13447, section 4.1).

    The derivative is (v_tan . d/dz) u + du/dt: along the tangent (v_tan, 0, 1) of (z, r, t). Both
    results carry gradients if these are enabled; inside ``torch.no_grad()`` there is no graph.
    """
    # Copies: compiled forward mode fails on views that begin in the middle of a tensor.
    primals = (z.clone(), r.clone(), t.clone())
    tangents = (v_tan.clone(), torch.zeros_like(r), torch.ones_like(t))
    return torch.func.jvp(u, primals, tangents)  # type: ignore[return-value]


def directional_derivative(
    u: AverageVelocity, z: Sample, r: Time, t: Time, direction: Sample
) -> Sample:
    """(direction . d/dz) u(z, r, t): what the tangent alone adds, linear in ``direction``."""
    zero = torch.zeros_like(r)
    primals = (z.clone(), r.clone(), t.clone())
    return torch.func.jvp(u, primals, (direction.clone(), zero, zero))[1]
