"""Gaussian mixtures in any dimension, with centres on a sphere (arXiv 2605.09235, supplement)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vamf.data.dataset import Generated, Split
from vamf.flow.oracle import MixtureVelocity
from vamf.rng import generator as keyed

MixtureName = Literal["gmm", "dgmm"]


class Shape(NamedTuple):
    """The parameters of a kind of mixture, the same in every dimension."""

    components: int
    radius: float
    """Distance of the centres from the origin."""
    std: float
    """Standard deviation of each component along each axis."""


SHAPES: dict[MixtureName, Shape] = {"gmm": Shape(8, 3.0, 0.3), "dgmm": Shape(64, 1.5, 0.5)}


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Equally likely Gaussians: ``gmm`` has 8 at radius 3, ``dgmm`` has 64 at radius 1.5.

    Standard deviations are 0.3 and 0.5. Centres are normalised Gaussian vectors times the radius.
    """

    classes: ClassVar[int] = 0
    """Points have no labels."""

    name: MixtureName = "dgmm"
    """Which mixture."""
    dim: int = 2
    """Dimension of the space, 2 to 64."""
    centres: Literal["fixed", "redrawn"] = "fixed"
    """`fixed` draws the centres once; `redrawn` draws them anew for every batch, as the paper's
    code does, which makes the marginal a smooth shell."""
    centres_seed: int = 0
    """Seed of fixed centres."""

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise ValueError(f"name must be one of {', '.join(SHAPES)}; got {self.name!r}")
        if not 2 <= self.dim <= 64:
            raise ValueError(f"dim must lie in 2, ..., 64; got {self.dim}")
        if self.centres not in ("fixed", "redrawn"):
            raise ValueError(f"centres must be fixed or redrawn; got {self.centres!r}")
        if self.centres == "redrawn" and self.centres_seed:
            raise ValueError(
                f"centres_seed would be ignored with redrawn centres; got {self.centres_seed}"
            )

    def load(self, split: Split) -> Generated:
        """The same for both splits: samples are drawn anew, so none is in both."""
        return Generated(lambda n, g: self.batches(1, n, g)[0], (self.dim,))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a point."""
        return (self.dim,)

    @property
    def has_exact_velocity(self) -> bool:
        """Whether the marginal velocity has a closed form: it has with fixed centres."""
        return self.centres == "fixed"

    def velocity(self) -> MixtureVelocity:
        """The exact marginal velocity; ValueError if the centres are redrawn."""
        return MixtureVelocity(self.positions(), self.std)

    @property
    def std(self) -> float:
        """Standard deviation of each component along each axis."""
        return SHAPES[self.name].std

    @property
    def weights(self) -> Tensor:
        """Probabilities of the components, all equal."""
        components = SHAPES[self.name].components
        return torch.full((components,), 1 / components)

    def positions(self) -> Tensor:
        """Fixed centres, (components, dim), a function of name, dim and centres_seed, on the CPU.

        Raises ValueError if the centres are redrawn.
        """
        if self.centres == "redrawn":
            raise ValueError("centres must be fixed to have positions; got redrawn")
        return self._draw(1, keyed("centres", self.name, self.dim, self.centres_seed))[0]

    def batches(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """``count`` batches at once, (count, size, dim), on the generator's device.

        Redrawn centres are the same within a batch and independent between batches.
        """
        components, device = SHAPES[self.name].components, generator.device
        if self.centres == "redrawn":
            centres = self._draw(count, generator)
        else:
            centres = self.positions().to(device).expand(count, -1, -1)
        k = torch.randint(components, (count, size, 1), generator=generator, device=device)
        normal = torch.randn(count, size, self.dim, generator=generator, device=device)
        return centres.gather(1, k.expand(-1, -1, self.dim)) + self.std * normal

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        components, radius, _ = SHAPES[self.name]
        shape = (count, components, self.dim)
        normal = torch.randn(shape, generator=generator, device=generator.device)
        return radius * normal / normal.norm(dim=-1, keepdim=True)
