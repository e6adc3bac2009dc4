"""The parts of an experiment that have no module of their own: how it is trained and evaluated."""

from dataclasses import dataclass, field
from typing import Literal

from vamf.metrics.distances import FrechetDistance, SlicedWasserstein

Sampler = Literal["average", "euler", "heun", "ancestral", "ddim"]


def require_at_least(minimum: float, **numbers: float) -> None:
    """Raises ValueError for the first number that is less than ``minimum``."""
    for name, number in numbers.items():
        if number < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {number}")


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [k for k in range(1, number + 1) if number % k == 0]


def require_divisor(parts: int, share: int, workers: int) -> None:
    """Raises ValueError unless ``parts`` divides a worker's ``share`` of the batch."""
    if share % parts == 0:
        return
    known = divisors(share)
    below = max(k for k in known if k < parts)
    near = [str(below), *(str(k) for k in known if k > parts)][:2]
    raise ValueError(
        f"compute.accumulate must divide a worker's share of the batch, {share} samples of "
        f"{workers} worker{'s' * (workers > 1)}; got {parts}: the nearest are {' and '.join(near)}"
    )


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Adam with linear warm-up and cosine decay."""

    lr: float = 1e-3
    """Peak learning rate, positive."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    warmup: int = 0
    """Steps of a linear rise: the first has lr / warmup, the last of them lr."""
    final: float = 0.01
    """Value at which the cosine ends, one step after the last, divided by lr; 1 keeps lr constant
    after the warm-up."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be positive; got {self.lr}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"Adam's betas must lie in [0, 1); got {self.beta1}, {self.beta2}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"optim.final must lie in [0, 1]; got {self.final}")
        require_at_least(0, **{"optim.warmup": self.warmup})


@dataclass(frozen=True, kw_only=True)
class VelocityHead:
    """How a network's velocity head is trained: by flow matching, weighted as the loss."""

    weight: float = 1.0
    """Factor of the head's loss, positive."""
    every_r: bool = False
    """Train it on a sample's own r, as in improved Mean Flows (arXiv 2512.02012 and its code); if
    not, at r = t, where it is used."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"head.weight must be positive and finite; got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How and how often the moving average of the network is evaluated, on fixed noise."""

    every: int = 1000
    """Steps between evaluations; the last step is always evaluated."""
    distance: FrechetDistance | SlicedWasserstein = field(default_factory=FrechetDistance)
    """Distance of generated samples to real ones."""
    sampler: Sampler = "average"
    """average: steps of the average velocity u(z, r, t). euler, heun: Euler's or Heun's rule on
    u(z, t, t), which flow matching learns. ancestral, ddim: for a DDPM; ancestral takes all of its
    levels, ddim the given number of steps."""
    sampling_steps: int = 1
    """Steps for each generated sample; a step evaluates the network once, Heun's rule twice."""
    guidance_scale: float = 1.0
    """Guidance scale of generated samples, for a network that takes it as input; 1: no guidance."""
    guidance_t_min: float = 0.0
    """Earliest time of guidance in [0, 0.5], for a network that takes the interval as input."""
    guidance_t_max: float = 1.0
    """Latest time of guidance in [0.5, 1], for a network that takes the interval as input."""
    variance_samples: int = 512
    """Samples at each time for the loss variance, at least 2."""
    gradient_batches: int = 8
    """Independent batches for the gradient variance, at least 2."""
    seed: int = 2020
    """Seed of the evaluation's own noise; runs to be compared must share it."""

    def __post_init__(self) -> None:
        require_at_least(1, every=self.every, sampling_steps=self.sampling_steps)
        if not 1 <= self.guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be at least 1; got {self.guidance_scale}")
        if not 0 <= self.guidance_t_min <= 0.5 <= self.guidance_t_max <= 1:
            raise ValueError(
                "guidance_t_min must lie in [0, 0.5] and guidance_t_max in [0.5, 1]; "
                f"got {self.guidance_t_min} and {self.guidance_t_max}"
            )
        require_at_least(
            2, variance_samples=self.variance_samples, gradient_batches=self.gradient_batches
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When checkpoints are saved, and which are kept."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Number of latest checkpoints that are kept; the best one by distance is kept too."""

    def __post_init__(self) -> None:
        require_at_least(1, **{"checkpoint.every": self.every, "checkpoint.keep": self.keep})


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a training step is computed. It changes results by rounding only."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the network's products. float32: no rounding. tf32: rounds the factors of matrix
    products and convolutions on a GPU. bfloat16: all but statistics, times and the loss."""
    compile: bool = False
    """Compute values and tangents together, tangents only for samples with r < t, with fused
    kernels; on a GPU a step is replayed as one CUDA graph from the fourth step on."""
    accumulate: int | Literal["auto"] = 1
    """Micro-batches into which each worker splits its share of a batch, one after the other: a step
    needs the memory of one of them. auto: as few as fit into a GPU, by small passes before the
    first step. With dropout, each has masks of its own."""
    checkpointing: bool = False
    """Keep only the inputs of a network's blocks for the backward pass, which computes each block
    again: less memory, more time."""

    def __post_init__(self) -> None:
        if self.accumulate != "auto":
            require_at_least(1, **{"compute.accumulate": self.accumulate})
