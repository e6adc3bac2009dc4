"""A run as one frozen value: every choice that shapes it, and nothing that does not."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch

from vamf import values
from vamf.data import vae
from vamf.data.augment import Augmentation
from vamf.data.downloads import CIFAR10, MNIST
from vamf.data.folders import ImageFolder
from vamf.data.images import Digits
from vamf.data.latents import Latents
from vamf.data.mixtures import Mixture
from vamf.data.toys import Toy
from vamf.diagnostics.adaptive import AdaptiveBeta
from vamf.diagnostics.probe import Probe
from vamf.files import write_whole
from vamf.flow.ddpm import DDPM
from vamf.flow.guidance import Guidance
from vamf.flow.losses import MeanFlowLoss
from vamf.flow.schedules import BetaOfTime, BetaSchedule
from vamf.flow.times import ClippedLogitNormalTimes, LogitNormalTimes, UniformTimes
from vamf.metrics.distances import FrechetDistance, SlicedWasserstein
from vamf.models.dit import DiTConfig
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.store import absolute
from vamf.typing import Sample

Sampler = Literal["average", "euler", "heun", "ancestral", "ddim"]

SCHEMA = 2
"""Of the dictionaries that describe an experiment; in the first, ``ema`` was one update's decay."""


def _at_least(minimum: float, **numbers: float) -> None:
    for name, number in numbers.items():
        if number < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {number}")


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
    """Where the cosine ends, one step after the last, as a share of lr; 1 keeps it constant after
    the warm-up."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be positive; got {self.lr}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"Adam's betas must lie in [0, 1); got {self.beta1}, {self.beta2}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"optim.final must lie in [0, 1]; got {self.final}")
        _at_least(0, **{"optim.warmup": self.warmup})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured of the moving average of the network, on fixed noise, and how often."""

    every: int = 1000
    """Steps between evaluations; the last step is always evaluated."""
    distance: FrechetDistance | SlicedWasserstein = field(default_factory=FrechetDistance)
    """Distance of generated samples to real ones."""
    sampler: Sampler = "average"
    """Steps along the average velocity (average); Euler's or Heun's rule on u(z, t, t), which flow
    matching learns; those of a DDPM (ancestral takes all of its levels, ddim as many as asked)."""
    sampling_steps: int = 1
    """Steps for each generated sample: a network evaluation each, two for Heun's rule."""
    guidance_scale: float = 1.0
    """Guidance scale of generated samples, for a network that is told of it; 1 guides nothing."""
    variance_samples: int = 512
    """Samples at each time for the loss variance, at least 2."""
    gradient_batches: int = 8
    """Independent batches for the gradient variance, at least 2."""
    seed: int = 2020
    """Seed of the evaluation's own noise: common to all runs that are to be compared."""

    def __post_init__(self) -> None:
        _at_least(1, every=self.every, sampling_steps=self.sampling_steps)
        if not 1 <= self.guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be at least 1; got {self.guidance_scale}")
        _at_least(2, variance_samples=self.variance_samples, gradient_batches=self.gradient_batches)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the state is saved, and what is kept of it."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """How many of the latest checkpoints stay; the best one by distance stays besides."""

    def __post_init__(self) -> None:
        _at_least(1, **{"checkpoint.every": self.every, "checkpoint.keep": self.keep})


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a training step is computed. What it computes is the same up to rounding."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the network's products: float32 rounds nothing, tf32 the factors of matrix products and
    convolutions on a GPU, bfloat16 everything but statistics, times and the loss."""
    compile: bool = False
    """Carry tangents beside values, of the samples with r < t alone, through fused kernels; on a
    GPU the passes of a step are one CUDA graph from the fourth step on."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Every choice of a run; a variant is ``dataclasses.replace`` or ``override``."""

    data: Toy | Mixture | Digits | MNIST | CIFAR10 | ImageFolder | Latents = field(
        default_factory=Digits
    )
    """What is learnt."""
    model: MLPConfig | UNetConfig | DiTConfig = field(default_factory=UNetConfig)
    """The network u(z, r, t)."""
    times: UniformTimes | LogitNormalTimes | ClippedLogitNormalTimes = field(
        default_factory=LogitNormalTimes
    )
    """Distribution of the times (r, t)."""
    beta: BetaSchedule | BetaOfTime | AdaptiveBeta = field(default_factory=BetaSchedule)
    """Weight of the proxy in the jvp's tangent."""
    proxy: Literal["ema", "online", "head", "oracle", "reference"] = "ema"
    """The proxy: the velocity at r = t of the moving average (ema) or of the trained network itself
    (online), its velocity head's (head), the true one of data that have a closed form (oracle), or
    that of another checkpoint (reference). With dropout the trained network's own velocity has the
    masks of the step. The head is trained at r = t; that of improved Mean Flows at every r."""
    reference: Path | None = None
    """Checkpoint, or run's folder, of the proxy `reference`: for example a flow-matching run."""
    loss: MeanFlowLoss = field(default_factory=MeanFlowLoss)
    """The objective."""
    ddpm: DDPM | None = None
    """Train this baseline in place of the objective, with no beta."""
    guidance: Guidance | None = None
    """Labels and classifier-free guidance in training; needs model.classes."""
    augment: Augmentation | None = None
    """Random transformations of images in training, of which model.augmentations numbers tell."""
    compute: Compute = field(default_factory=Compute)
    """Precision and compilation of a step."""
    optim: Optimiser = field(default_factory=Optimiser)
    """The optimiser."""
    ema: float = 0.999
    """Decay of the moving average of the weights in one step, in [0, 1): weights that are 1 / (1 -
    ema) steps old count 1 / e as much as the newest, whatever `ema_every`."""
    ema_every: int = 1
    """Steps between updates of the moving average, of which each decays by ema ** ema_every."""
    batch: int = 256
    """Samples in a step, over all workers."""
    steps: int = 10_000
    """Training steps."""
    seed: int = 0
    """Seed of the initial weights, the data order, the noise and the times."""
    log_every: int = 50
    """Steps between logged training metrics."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Measurements during and after training."""
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    """Saving."""
    probe: Probe | None = None
    """Beta landscapes while training; `--set probe.every=1000` turns them on."""

    def __post_init__(self) -> None:
        _at_least(1, batch=self.batch, steps=self.steps, log_every=self.log_every)
        _at_least(1, ema_every=self.ema_every)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1); got {self.ema}")
        self._check_proxy()
        self._check_guidance()
        self._check_latents()
        self._check_augment()
        self._check_compute()
        self._check_ddpm()
        points = isinstance(self.data, Toy | Mixture)
        if points and not isinstance(self.model, MLPConfig):
            raise ValueError(f"points take an MLPConfig; got {type(self.model).__name__}")
        if points != isinstance(self.evaluation.distance, SlicedWasserstein):
            raise ValueError(
                "points are measured by SlicedWasserstein and images by FrechetDistance; "
                f"got {type(self.evaluation.distance).__name__} for {type(self.data).__name__}"
            )

    def _check_proxy(self) -> None:
        if (self.proxy == "reference") != (self.reference is not None):
            raise ValueError(
                "the proxy reference takes a checkpoint, and no other proxy does; "
                f"got proxy {self.proxy} and reference {self.reference}"
            )
        if self.proxy == "oracle" and not self.data.has_velocity:
            raise ValueError(
                f"the proxy oracle needs data with a closed-form velocity; got {self.data}"
            )
        if (self.proxy == "head") != self.model.velocity_head:
            raise ValueError(
                "the proxy head and model.velocity_head go together; "
                f"got proxy {self.proxy} and velocity_head {self.model.velocity_head}"
            )

    def _check_compute(self) -> None:
        if self.compute.precision == "bfloat16" and self.proxy == "head":
            raise ValueError(
                "bfloat16 needs a proxy without a head of its own; got proxy head: use another, or "
                "compute.precision float32"
            )
        if self.compute.compile and self.loss.alpha is not None:
            raise ValueError(
                "loss.alpha makes another program of every step: it is not compiled; use "
                "compute.compile false"
            )

    def _check_ddpm(self) -> None:
        denoises = self.evaluation.sampler in ("ancestral", "ddim")
        if denoises != (self.ddpm is not None):
            raise ValueError(
                "a DDPM and the samplers ancestral and ddim go together; "
                f"got {self.ddpm} and {self.evaluation.sampler}"
            )
        if self.ddpm is None:
            return
        if self.times != UniformTimes(prob_equal=1.0):
            raise ValueError(f"a DDPM needs UniformTimes with prob_equal = 1; got {self.times}")
        if self.guidance or self.probe or self.loss != MeanFlowLoss() or self.proxy != "ema":
            raise ValueError(
                "a DDPM needs proxy ema, a MeanFlowLoss without settings, and neither guidance nor "
                f"probe; got {self.proxy}, {self.loss}, {self.guidance} and {self.probe}"
            )
        levels, steps = self.ddpm.levels, self.evaluation.sampling_steps
        if self.evaluation.sampler == "ancestral" and steps != levels:
            raise ValueError(f"ancestral sampling takes all {levels} levels; got {steps} steps")
        if steps > levels:
            raise ValueError(f"DDIM takes 1 to {levels} steps; got {steps}")

    def _check_guidance(self) -> None:
        known = 0 if isinstance(self.data, Toy | Mixture) else self.data.classes
        if self.model.classes != (known if self.guidance else 0):
            raise ValueError(
                "guidance and model.classes go together, with labelled data of as many classes; "
                f"got {self.guidance}, {self.model.classes} and {self.data} with {known} classes"
            )
        most = self.guidance.max_scale if self.guidance else None
        if self.model.guided != (most is not None):
            raise ValueError(
                "guidance.max_scale and model.guided go together; "
                f"got {most} and {self.model.guided}"
            )
        if self.evaluation.guidance_scale > (most or 1):
            raise ValueError(
                "evaluation.guidance_scale must lie in [1, guidance.max_scale], and be 1 without "
                f"that; got {self.evaluation.guidance_scale} and {most}"
            )
        if self.guidance is None:
            return
        if self.model.classes == 0:
            raise ValueError(f"guidance needs labelled data; got {self.data}")
        if self.proxy not in ("ema", "online"):
            raise ValueError(f"guidance needs a proxy that knows labels; got {self.proxy}")
        if self.guidance.mixing == "parameters" and self.proxy != "ema":
            raise ValueError(
                f"guidance that mixes parameters needs the proxy ema; got {self.proxy}"
            )

    def _check_augment(self) -> None:
        told = self.model.augmentations if isinstance(self.model, UNetConfig) else 0
        wanted = self.augment.dim if self.augment else 0
        if told != wanted:
            raise ValueError(
                "augment and model.augmentations go together; "
                f"got {self.augment}, which tells {wanted} numbers, and a network for {told}"
            )
        if self.augment and self.proxy not in ("ema", "online"):
            raise ValueError(f"augment needs a proxy that is told of it; got {self.proxy}")

    def _check_latents(self) -> None:
        if not isinstance(self.data, Latents):
            return
        if self.augment:
            raise ValueError(
                f"augment is for images, and data.mirror for latents; got {self.augment}"
            )
        distance = self.evaluation.distance
        if isinstance(distance, FrechetDistance) and distance.reference == "test":
            raise ValueError(
                "latents are compared with data.images, the training images, or with a file of "
                "statistics; got evaluation.distance.reference test"
            )

    @property
    def pictures(self) -> Toy | Mixture | Digits | MNIST | CIFAR10 | ImageFolder:
        """What generated samples are compared with: the data, or the images behind latents."""
        return self.data.pictures if isinstance(self.data, Latents) else self.data

    def decoder(self, device: torch.device) -> Callable[[Sample], Sample]:
        """What turns generated samples into those of ``pictures``; ValueError if it is missing."""
        return self.data.decoder(device) if isinstance(self.data, Latents) else lambda x: x

    def prepare(self) -> None:
        """Finds the data, and what their distance needs; ValueError says what is missing."""
        self.data.load("train")
        distance = self.evaluation.distance
        if isinstance(self.data, Latents) and isinstance(distance, FrechetDistance):
            self.data.prepare(compared=not isinstance(distance.reference, Path))
        distance.prepare(self.pictures)

    def located(self) -> Self:
        """The same with absolute paths, for processes that work in other folders: Ray's do.

        A relative path starts in the folder that this process works in.
        """
        placed: Self = values.with_paths(self, absolute)
        if not isinstance(placed.data, Latents):
            return placed
        return replace(placed, data=replace(placed.data, vae=vae.located(placed.data.vae)))

    def moved(self, before: Path, now: Path) -> Self:
        """The same for a run's folder that was ``before`` and is ``now`` there.

        A path to what is gone, and lies now as it lay from that folder, is changed.
        """
        above = list(zip([before, *before.parents], [now, *now.parents], strict=False))

        def follow(path: Path) -> Path:
            old = [(a, b) for a, b in above if path.is_relative_to(a)] if not path.exists() else []
            found = (new / path.relative_to(old) for old, new in old)
            return next((place for place in found if place.exists()), path)

        followed: Self = values.with_paths(self, follow)
        return followed

    def differences(self, other: "Experiment") -> dict[str, tuple[Any, Any]]:
        """What differs from another experiment: its values there and here, by dotted name.

        A relative path, as earlier versions saved them, equals any absolute one that ends like it:
        where it started was not saved. A path to what is gone equals one of the same name to what
        is there: it was moved.
        """
        here, there = self.flatten(), other.flatten()
        pairs = {n: (there.get(n), here.get(n)) for n in sorted(here.keys() | there.keys())}
        return {
            name: pair
            for name, pair in pairs.items()
            if pair[0] != pair[1] and not _ends(*pair) and not _moved(*pair)
        }

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of JSON's types, and ``schema``, their version."""
        return {"schema": SCHEMA, **values.to_dict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``, of older versions too; ValueError names what is wrong."""
        return values.from_dict(cls, _migrated(data))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what ``save`` wrote."""
        return cls.from_dict(json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Writes JSON, readable and complete; all of it or nothing."""
        write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A copy with fields replaced by dotted name, such as ``{"optim.lr": 3e-4}``."""
        return values.override(self, changes)

    def flatten(self) -> dict[str, Any]:
        """All choices on one level, by dotted name."""
        return values.flatten(values.to_dict(self))


def _ends(there: object, here: object) -> bool:
    """Whether ``there`` is a relative path, and ``here`` the same path from the root on."""
    if not (isinstance(there, str) and isinstance(here, str)):
        return False
    relative, whole = Path(there), Path(here)
    if relative.is_absolute() or not whole.is_absolute():
        return False
    count = len(relative.parts)
    return count == 0 or whole.parts[-count:] == relative.parts


def _moved(there: object, here: object) -> bool:
    """Whether both are absolute paths with one name, and only ``here`` is something there."""
    if not (isinstance(there, str) and isinstance(here, str)):
        return False
    gone, found = Path(there), Path(here)
    if gone.name != found.name or not (gone.is_absolute() and found.is_absolute()):
        return False
    return found.exists() and not gone.exists()


def _migrated(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same experiment in the present schema; what names no schema is of the first."""
    data = dict(data)
    schema = data.pop("schema", 1)
    if schema not in range(1, SCHEMA + 1):
        raise ValueError(
            f"an experiment's schema must be 1 to {SCHEMA}; got {schema!r}: update vamf"
        )
    if schema == 1 and (every := data.get("ema_every", 1)) > 1 and "ema" in data:
        data["ema"] **= 1 / every
    return data
