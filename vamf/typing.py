"""Tensor aliases, so that signatures show the shapes of tensors."""

from collections.abc import Callable, Mapping
from typing import Protocol

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Sample = Float[Tensor, "batch *shape"]
"""Points, images or latents, and all tensors of their shape: noise, velocities, targets."""

Time = Float[Tensor, " batch"]
"""One time in [0, 1] for each sample: 0 is data, 1 is noise."""

Scalars = Float[Tensor, " batch"]
"""One number for each sample: a squared error, a weight."""

Pixels = UInt8[Tensor, "batch channels height width"]
"""Quantised images, 0 to 255."""

Beta = float | Scalars
"""beta in [0, 1]: one number for all samples, or one for each of them, (batch,)."""

BetaAt = Callable[[Time], Beta]
"""beta of samples at the given times t."""

Features = Float[Tensor, "batch features"]
"""The features that an extractor computes from images."""

Estimates = Mapping[str, tuple[float, float]]
"""Measured values and their standard errors, by name."""

Label = Int[Tensor, " batch"]
"""Class indices."""


class AverageVelocity(Protocol):
    """u(z, r, t): the mean of the velocity between the times r <= t on the path through z."""

    def __call__(self, z: Sample, r: Time, t: Time, /) -> Sample: ...


class Velocity(Protocol):
    """v(z, t): a velocity at a point and a time, for instance a proxy of the marginal one."""

    def __call__(self, z: Sample, t: Time, /) -> Sample: ...


def expand_like(values: Time, like: Sample) -> Tensor:
    """Shapes one number per sample, (batch,), to broadcast against ``like``, (batch, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
