"""Samples data from noise by an average velocity (arXiv 2505.13447, section 4.1) or an ODE."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from vamf.typing import AverageVelocity, Sample, Velocity


def sample(u: AverageVelocity, e: Sample, steps: int = 1) -> Sample:
    """Moves noise ``e`` at t = 1 to data at t = 0 by z_r = z_t - (t - r) u(z_t, r, t).

    ``steps`` equal steps, one evaluation of ``u`` each; one step is x = e - u(e, 0, 1).
    """
    z = e
    for t, r in _intervals(e, steps):
        z = z - (t - r) * u(z, r.expand(len(z)), t.expand(len(z)))
    return z


def euler(v: Velocity, e: Sample, steps: int) -> Sample:
    """Solves dz/dt = v(z, t) from noise ``e`` at t = 1 to t = 0: first order, ``steps`` calls."""
    return sample(lambda z, r, t: v(z, t), e, steps)


def heun(v: Velocity, e: Sample, steps: int, *, last_euler: bool = False) -> Sample:
    """Solves the same equation by Heun's rule: second order, two calls for each step.

    With ``last_euler`` the last step is Euler's, as in EDM (arXiv 2206.00364, algorithm 1), and the
    order the same. Then v(z, 0) is not used, which jumps if the data are points: of one point c, v
    is e - c on the path and -c at t = 0.
    """
    z = e
    for index, (t, r) in enumerate(_intervals(e, steps), start=1):
        here = v(z, t.expand(len(z)))
        if last_euler and index == steps:
            return z - (t - r) * here
        there = v(z - (t - r) * here, r.expand(len(z)))
        z = z - (t - r) * (here + there) / 2
    return z


def _intervals(e: Sample, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step; got {steps}")
    return pairwise(torch.linspace(1, 0, steps + 1, device=e.device, dtype=e.dtype))
