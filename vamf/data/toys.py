"""Distributions in the plane, as exact samplers: n independent points, (n, 2) float32.

They are drawn on the generator's device. In the formulas N is standard normal and U uniform on
(0, 1), drawn anew at each occurrence.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vamf.data.dataset import Dataset, Generated, PointSampler, Split
from vamf.flow.oracle import MixtureVelocity
from vamf.typing import Sample

ToyName = Literal[
    "checkerboard", "eight_gaussians", "two_moons", "swiss_roll", "two_spirals", "pinwheel"
]


def checkerboard(n: int, generator: torch.Generator) -> Sample:
    """Uniform on the dark squares, of side 2, of a board [-4, 4]^2.

    2 (a, b) with a = 4 U - 2 and b = U - 2 Bernoulli(1/2) + (floor(a) mod 2).
    """
    a = 4 * _uniform(n, generator) - 2
    b = _uniform(n, generator) - 2 * _choice(2, n, generator) + a.floor() % 2
    return 2 * torch.stack([a, b], dim=1)


def eight_gaussians(n: int, generator: torch.Generator) -> Sample:
    """Eight equally likely Gaussians on a circle: 3 (cos, sin)(2 pi k / 8) + N / 4."""
    angle = 2 * math.pi / 8 * _choice(8, n, generator)
    return 3 * _circle(angle) + 0.25 * _normal(n, generator)


def two_moons(n: int, generator: torch.Generator) -> Sample:
    """Two interleaved half circles, noise of deviation 0.08, doubled.

    With theta = pi U the point is (cos, sin) or (1 - cos, 1/2 - sin), with probability 1/2 each.
    """
    upper = _circle(math.pi * _uniform(n, generator))
    lower = upper.new_tensor([1.0, 0.5]) - upper
    moon = torch.where(_choice(2, n, generator)[:, None] == 0, upper, lower)
    return 2 * (moon + 0.08 * _normal(n, generator))


def swiss_roll(n: int, generator: torch.Generator) -> Sample:
    """A spiral: tau (cos, sin)(tau) / 8 + 0.08 N with tau = 3/2 pi (1 + 2 U)."""
    tau = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return tau[:, None] * _circle(tau) / 8 + 0.08 * _normal(n, generator)


def two_spirals(n: int, generator: torch.Generator) -> Sample:
    """Two spirals through the origin: +-tau (cos, sin)(tau) / 5 + 0.08 N, tau = 3 pi sqrt(U)."""
    tau = 3 * math.pi * _uniform(n, generator).sqrt()
    sign = 1 - 2 * _choice(2, n, generator)
    return (sign * tau)[:, None] * _circle(tau) / 5 + 0.08 * _normal(n, generator)


def pinwheel(n: int, generator: torch.Generator) -> Sample:
    """Five bent arms: 3/2 (1 + 0.3 N, 0.1 N), turned counterclockwise.

    The angle is 2 pi k / 5 + exp(first coordinate) / 4, with k uniform on 0, ..., 4.
    """
    normal = _normal(n, generator)
    arm = normal.new_tensor([1.0, 0.0]) + normal.new_tensor([0.3, 0.1]) * normal
    x, y = arm.unbind(1)
    cos, sin = _circle(2 * math.pi / 5 * _choice(5, n, generator) + 0.25 * x.exp()).unbind(1)
    return 1.5 * torch.stack([x * cos - y * sin, x * sin + y * cos], dim=1)


TOYS: dict[ToyName, PointSampler] = {
    "checkerboard": checkerboard,
    "eight_gaussians": eight_gaussians,
    "two_moons": two_moons,
    "swiss_roll": swiss_roll,
    "two_spirals": two_spirals,
    "pinwheel": pinwheel,
}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A distribution in the plane, sampled exactly: there are neither epochs nor splits."""

    classes: ClassVar[int] = 0
    """Points have no labels."""

    name: ToyName = "eight_gaussians"
    """Which distribution."""

    def __post_init__(self) -> None:
        if self.name not in TOYS:
            raise ValueError(f"name must be one of {', '.join(TOYS)}; got {self.name!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a point."""
        return (2,)

    @property
    def has_exact_velocity(self) -> bool:
        """Whether the marginal velocity has a closed form: only that of eight_gaussians has."""
        return self.name == "eight_gaussians"

    def velocity(self) -> MixtureVelocity:
        """The exact marginal velocity; ValueError where it has no closed form."""
        if not self.has_exact_velocity:
            raise ValueError(f"{self.name} has no closed-form velocity; eight_gaussians has")
        angles = 2 * math.pi / 8 * torch.arange(8, dtype=torch.float64)
        return MixtureVelocity(3 * _circle(angles), 0.25)

    def load(self, split: Split) -> Dataset:
        """The same for both splits: samples are drawn anew, so none is in both."""
        return Generated(TOYS[self.name], (2,))

    def batches(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """``count`` batches at once, (count, size, 2), on the generator's device."""
        return TOYS[self.name](count * size, generator).reshape(count, size, 2)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, device=generator.device)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device)


def _choice(k: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(k, (n,), generator=generator, device=generator.device).float()


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=1)
