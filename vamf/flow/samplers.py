"""From noise to data with an average velocity (arXiv 2505.13447, section 4.1)."""

from itertools import pairwise

import torch

from vamf.typing import AverageVelocity, Sample


def sample(u: AverageVelocity, e: Sample, steps: int = 1) -> Sample:
    """Walks noise ``e`` at t = 1 to data at t = 0: z_r = z_t - (t - r) u(z_t, r, t).

    ``steps`` equal steps, one evaluation of ``u`` each; one step is x = e - u(e, 0, 1).
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step; got {steps}")
    z, times = e, torch.linspace(1, 0, steps + 1, device=e.device, dtype=e.dtype)
    for t, r in pairwise(times):
        z = z - (t - r) * u(z, r.expand(len(z)), t.expand(len(z)))
    return z
