"""What all objectives share: a step's random draws, the terms of a loss, weights of samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from vamf.typing import AverageVelocity, Beta, Sample, Scalars, Time, Velocity


class Draws(NamedTuple):
    """What a step draws at random; objectives are deterministic given it."""

    x: Sample
    """Data."""
    e: Sample
    """Standard normal noise, of the shape of ``x``."""
    r: Time
    """The earlier time."""
    t: Time
    """The later time, r <= t."""
    n_equal: int = 0
    """The first ``n_equal`` samples have r = t and need no derivative."""

    def parts(self, size: int) -> Iterator["Draws"]:
        """The batch in order, in parts of at most ``size`` samples."""
        for start in range(0, len(self.x), size):
            x, e, r, t = (a[start : start + size] for a in self[:4])
            yield Draws(x, e, r, t, min(max(self.n_equal - start, 0), size))

    def every(self, count: int, first: int = 0) -> "Draws":
        """The samples first, first + count, ..., which begin with those of r = t, too."""
        x, e, r, t = (a[first::count] for a in self[:4])
        return Draws(x, e, r, t, len(range(first, self.n_equal, count)))


class LossTerms(NamedTuple):
    """The loss and what is logged of it, as tensors without synchronisation."""

    loss: Tensor
    """Mean over the batch of the weighted loss, with the anchor: differentiate this."""
    squared_error: Scalars
    """|u - target|^2 of each sample, unweighted, summed over its axes, detached."""
    squared_correction: Scalars
    """|(t - r) du/dt|^2 of each sample, summed over its axes; 0 where r = t."""
    n_equal: int
    """The first ``n_equal`` samples have r = t."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeight:
    """w = 1 / sg[l + c]^p for a sample's squared error l (arXiv 2505.13447, section 4.3).

    With ``root`` w = 1 / sg[sqrt(l) + c]^p. Its gradient with p = 1 is 2 du/dtheta g / (|g| + c), g
    the residual u - target: the tangent normalisation of sCM (arXiv 2410.11081, with c = 0.1), also
    `opt_grad` with `poly_1.0` of MeanFlow in NVIDIA's FastGen. Where these divide |g| by the square
    root of a sample's size d, c is larger here by it, and the loss smaller by a constant factor.
    """

    p: float = 0.0
    """Power: 0 is the plain squared error, 1 makes every sample's loss about 1, .5 pseudo-Huber."""
    c: float = 0.01
    """Added to the squared error, positive."""
    root: bool = False
    """Take the norm of the error in place of its square; with p = 1, a normalised tangent."""

    def __post_init__(self) -> None:
        if not (self.p >= 0 and self.c > 0):
            raise ValueError(f"the adaptive weight needs p >= 0 and c > 0; got {self.p}, {self.c}")
        if self.root and self.p == 0:
            raise ValueError(
                "the root of an error counts with a power: weight.p must be > 0; got 0"
            )

    def __call__(self, squared_error: Scalars) -> Scalars:
        if self.p == 0:
            return torch.ones_like(squared_error)
        error = squared_error.detach()
        return ((error.sqrt() if self.root else error) + self.c).pow(-self.p)


@runtime_checkable
class ObjectiveRule(Protocol):
    """A training objective: a frozen dataclass whose fields are its hyper-parameters.

    A class that inherits from this one learns a velocity, mixes a tangent by beta, weighs all
    samples alike, and depends on neither random signs nor training progress, unless it says
    otherwise. Its loss is the mean of its samples' losses: that of a batch is the mean of its
    parts'.
    """

    @property
    def weight(self) -> AdaptiveWeight:
        """Weight of each sample by its own squared error."""
        return AdaptiveWeight()

    @property
    def learns_velocity(self) -> bool:
        """Whether u(z, t, t) is a velocity; otherwise the network has no beta and no landscape."""
        return True

    @property
    def mixes_tangent(self) -> bool:
        """Whether beta mixes the tangent of du/dt; otherwise beta must be 0."""
        return True

    @property
    def has_landscape(self) -> bool:
        """Whether the error is that of the landscape, |u + (t - r) du/dt - v_cond|^2.

        Otherwise it cannot be probed, and evaluation takes the variance of the objective's own.
        """
        return True

    @property
    def probes(self) -> int:
        """Random signs that a sample of a step needs, as ``signs`` (probes, batch, ...)."""
        return 0

    @property
    def moves(self) -> bool:
        """Whether the objective depends on training progress."""
        return False

    def __call__(
        self,
        u: AverageVelocity,
        draws: Draws,
        *,
        beta: Beta,
        v_hat: Velocity,
        anchor_uniform: Time | None = None,
        signs: Tensor | None = None,
        progress: float | None = None,
        velocity: Sample | None = None,
        cond_weight: Scalars | None = None,
    ) -> LossTerms:
        """The loss of a network ``u`` on a step's draws.

        ``beta`` is the weight of the proxy ``v_hat`` in the tangent. ``anchor_uniform`` is (batch,)
        in [0, 1], ``progress`` in [0, 1] the share of training that is done. ``velocity``, such as
        a guided one, is used in place of v_cond in the target, in the tangent and in the anchor.
        ``cond_weight`` is the weight, 0 where r < t, of sg[u(z, t, t)] that is added to it.

        Raises ValueError if an argument that the objective needs is None.
        """
        ...


def squared_norm(residual: Sample) -> Scalars:
    """|a|^2 of each sample, summed over all data axes."""
    return residual.square().flatten(1).sum(1)


@runtime_checkable
class Moving(Protocol):
    """An objective that moves over training by one number, and whose steps can be compiled.

    It takes the number as the argument ``moved`` in place of ``progress``, as a tensor () unless it
    stands apart.
    """

    def moves_to(self, progress: float) -> float:
        """The number, such as alpha, at a ``progress`` in [0, 1]."""
        ...

    def stands_apart(self, moved: float) -> bool:
        """Whether the objective has operations of its own for this number."""
        ...


def moved_to(rule: Moving, progress: float | None, moved: float | Tensor | None) -> float | Tensor:
    """The number of an objective that moves: ``moved`` if it is given, else that of ``progress``.

    Raises ValueError if both are None.
    """
    if moved is not None:
        return moved
    if progress is None:
        raise ValueError(f"a {type(rule).__name__} that moves over training needs progress")
    return rule.moves_to(progress)
