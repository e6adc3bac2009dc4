"""A run as one frozen value: all choices that determine its result."""

import json
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import torch

from vamf import moved_paths, serialization
from vamf.data.augment import Augmentation
from vamf.data.couplings import Couplings, original
from vamf.data.digits import Digits
from vamf.data.image_folder import ImageFolder
from vamf.data.latents import Latents
from vamf.data.mixtures import Mixture
from vamf.data.source import DataSource, LatentSource, is_points
from vamf.data.torchvision_sets import CIFAR10, MNIST
from vamf.data.toys import Toy
from vamf.diagnostics.adaptive import AdaptiveBeta
from vamf.diagnostics.probe import Probe
from vamf.experiment_guidance import check_guidance
from vamf.experiment_objective import check_objective
from vamf.experiment_schema import SCHEMA, migrated, present_names
from vamf.experiment_settings import (
    Checkpoints,
    Compute,
    Evaluation,
    Optimiser,
    VelocityHead,
    require_at_least,
    require_divisor,
)
from vamf.experiment_stages import Loss, Proxy, Stage, Times, first_steps
from vamf.files import write_whole
from vamf.flow.guidance import Guidance
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.schedules import BetaOfTime, BetaSchedule
from vamf.flow.times import LogitNormalTimes
from vamf.metrics.distances import FrechetDistance, SlicedWasserstein
from vamf.models.config import NetworkConfig
from vamf.models.dit import DiTConfig
from vamf.models.inputs import check_inputs
from vamf.models.mlp import MLPConfig
from vamf.models.unet import UNetConfig
from vamf.store import absolute
from vamf.typing import Sample


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of a run; ``dataclasses.replace`` or ``override`` makes a variant."""

    data: (
        Toy | Mixture | Digits | MNIST | CIFAR10 | ImageFolder | Latents | Couplings | DataSource
    ) = field(default_factory=Digits)
    """The training data."""
    model: MLPConfig | UNetConfig | DiTConfig | NetworkConfig = field(default_factory=UNetConfig)
    """The network u(z, r, t)."""
    times: Times = field(default_factory=LogitNormalTimes)
    """Distribution of the times (r, t)."""
    beta: BetaSchedule | BetaOfTime | AdaptiveBeta = field(default_factory=BetaSchedule)
    """Weight of the proxy in the jvp's tangent."""
    proxy: Proxy = "ema"
    """The proxy of the marginal velocity. ema, online: the velocity at r = t of the moving average,
    or of the trained network itself. head: the network's velocity head. oracle: the exact velocity
    of data that have a closed form. batch: the exact velocity if the step's batch were all data,
    without a network. reference: the velocity of another checkpoint. With dropout, the trained
    network uses the masks of the step."""
    head: VelocityHead = field(default_factory=VelocityHead)
    """How the velocity head of the proxy `head` is trained."""
    reference: Path | None = None
    """Checkpoint or run's folder of the proxy `reference`: for example a flow-matching run."""
    init: Path | None = None
    """What the weights and their moving average start from: a run's folder, a checkpoint, an
    exported file, or a checkpoint of py-meanflow. The optimiser starts anew."""
    init_average: str | None = None
    """The network of a py-meanflow checkpoint: net_ema1 by default, net_ema, net_ema2 or net."""
    init_independent_of_r: bool = True
    """Whether a network that was trained at r = t only starts with u(z, r, t) = v(z, t) at every r.
    If not, its embedding of t - r is kept, which has been trained at 0 only."""
    loss: Loss = field(default_factory=MeanFlowLoss)
    """The objective. SemigroupLoss and TerminalVelocityLoss have no tangent and so no beta; a DDPM
    is a baseline without beta."""
    stages: tuple[Stage, ...] = ()
    """What trains before the objective, each for a share of the steps: for example flow matching.
    The objective has the steps that remain; evaluations and probes measure it at all steps."""
    guidance: Guidance | None = None
    """Labels and classifier-free guidance in training; needs model.classes."""
    augment: Augmentation | None = None
    """Random transformations of images in training, described by model.augmentations numbers."""
    compute: Compute = field(default_factory=Compute)
    """Precision and compilation of a step."""
    optim: Optimiser = field(default_factory=Optimiser)
    """The optimiser."""
    ema: float = 0.999
    """Decay of the moving average of the weights in one step, in [0, 1): weights that are 1 / (1 -
    ema) steps old count 1 / e as much as the newest, whatever `ema_every` is."""
    ema_every: int = 1
    """Steps between updates of the moving average; each update decays it by ema ** ema_every."""
    batch: int = 256
    """Samples in a step, over all workers."""
    steps: int = 10_000
    """Training steps."""
    seed: int = 0
    """Seed of the initial weights, the data order, the noise and the times."""
    log_every: int = 50
    """Steps between logged training metrics."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Evaluation during and after training."""
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    """Saving."""
    probe: Probe | None = None
    """Measurements of the beta landscape during training; `--set probe.every=1000` enables them."""

    def __post_init__(self) -> None:
        require_at_least(1, batch=self.batch, steps=self.steps, log_every=self.log_every)
        require_at_least(1, ema_every=self.ema_every)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1); got {self.ema}")
        self._check_proxy()
        if isinstance(self.data, Couplings):
            given = self.augment is not None, self.guidance is not None
            self.data.require_fits(self.loss, self.proxy, *given)
        check_guidance(
            self.guidance,
            model=self.model,
            data=self.data,
            proxy=self.proxy,
            evaluation=self.evaluation,
        )
        self._check_latents()
        self._check_augment()
        self._check_compute()
        check_objective(
            self.loss,
            beta=self.beta,
            times=self.times,
            guidance=self.guidance,
            probe=self.probe,
            proxy=self.proxy,
            compute=self.compute,
            evaluation=self.evaluation,
        )
        points = is_points(self.data)
        if points and isinstance(self.model, UNetConfig | DiTConfig):
            raise ValueError(f"points take an MLPConfig; got {type(self.model).__name__}")
        if points != isinstance(self.evaluation.distance, SlicedWasserstein):
            raise ValueError(
                "points are measured by SlicedWasserstein and images by FrechetDistance; "
                f"got {type(self.evaluation.distance).__name__} for {type(self.data).__name__}"
            )
        self._check_stages()

    def _check_stages(self) -> None:
        first_steps(self.stages, self.steps)
        for index, stage in enumerate(self.stages):
            if stage.beta is None and isinstance(self.beta, AdaptiveBeta):
                raise ValueError(
                    "only the experiment itself can adapt beta: set that of each stage; got none "
                    f"for stages.{index}"
                )
            try:
                self.stage(index)
            except ValueError as error:
                raise ValueError(f"stages.{index}: {error}") from None

    def _check_proxy(self) -> None:
        if (self.proxy == "reference") != (self.reference is not None):
            raise ValueError(
                "the proxy reference takes a checkpoint, and no other proxy does; "
                f"got proxy {self.proxy} and reference {self.reference}"
            )
        if self.init is None and (self.init_average or not self.init_independent_of_r):
            raise ValueError(
                "init_average and init_independent_of_r = false need init; "
                f"got {self.init_average!r} and {self.init_independent_of_r}"
            )
        if self.proxy == "oracle" and not self.data.has_exact_velocity:
            raise ValueError(
                f"the proxy oracle needs data with a closed-form velocity; got {self.data}"
            )
        if (self.proxy == "head") != self.model.velocity_head:
            raise ValueError(
                "the proxy head and model.velocity_head go together; "
                f"got proxy {self.proxy} and velocity_head {self.model.velocity_head}"
            )
        if self.proxy != "head" and self.head != VelocityHead():
            raise ValueError(f"the settings of a head need the proxy head; got {self.head}")

    def _check_compute(self) -> None:
        if self.compute.accumulate != "auto":
            require_divisor(self.compute.accumulate, self.batch, 1)
        if self.compute.checkpointing and not isinstance(self.model, UNetConfig | DiTConfig):
            raise ValueError(
                "compute.checkpointing needs a network of blocks, a UNetConfig or a DiTConfig; got "
                f"{type(self.model).__name__}"
            )
        if self.compute.compile and not isinstance(self.model, MLPConfig | UNetConfig | DiTConfig):
            raise ValueError(
                "compute.compile carries tangents through vamf's own layers: use compute.compile "
                f"false; got {self.model}"
            )

    def _check_augment(self) -> None:
        taken = self.model.augmentations if isinstance(self.model, UNetConfig) else 0
        wanted = self.augment.dim if self.augment else 0
        if taken != wanted:
            raise ValueError(
                "augment and model.augmentations go together; "
                f"got {self.augment}, which gives {wanted} numbers, and a network for {taken}"
            )
        if self.augment and self.proxy not in ("ema", "online", "head"):
            raise ValueError(f"augment needs a proxy that takes augment labels; got {self.proxy}")

    def _check_latents(self) -> None:
        if not isinstance(self.original, LatentSource):
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

    def stage_at(self, step: int) -> int:
        """The stage of a step, both counted from 0; ``len(stages)`` is the experiment itself."""
        return bisect(first_steps(self.stages, self.steps), step) - 1

    def progress(self, step: int) -> float:
        """The share of the steps after all stages that a step, counted from 0, has behind it."""
        first = first_steps(self.stages, self.steps)[-1]
        return max(step - first, 0) / (self.steps - first)

    def stage(self, index: int) -> tuple[int, Self]:
        """The first step of a stage, and its steps as an experiment without stages."""
        first = (*first_steps(self.stages, self.steps), self.steps)
        steps = first[index + 1] - first[index]
        if index == len(self.stages):
            return first[index], replace(self, stages=(), steps=steps)
        stage = self.stages[index]
        own = {f.name: getattr(stage, f.name) for f in fields(stage) if f.name != "share"}
        chosen = {name: value for name, value in own.items() if value is not None}
        if chosen.get("proxy", self.proxy) != "reference":
            chosen["reference"] = None
        return first[index], replace(self, stages=(), steps=steps, probe=None, **chosen)

    @property
    def original(self) -> DataSource:
        """The data whose distribution is learnt: of couplings, those that their flow learnt."""
        return original(self.data)

    @property
    def reference_images(self) -> DataSource:
        """The data that generated samples are compared with: the original, or latents' images."""
        data = self.original
        return data.reference_images if isinstance(data, LatentSource) else data

    def decoder(self, device: torch.device) -> Callable[[Sample], Sample]:
        """A function from generated samples to samples of ``reference_images``.

        Raises ValueError if the autoencoder of latents is missing.
        """
        data = self.original
        return data.decoder(device) if isinstance(data, LatentSource) else lambda x: x

    def prepare(self) -> None:
        """Loads the data and prepares the distance; ValueError if something lacks or cannot fit."""
        if not isinstance(self.model, MLPConfig | UNetConfig | DiTConfig):
            check_inputs(self.model, self.data.shape, every_r=self.head.every_r)
        self.data.load("train")
        data, distance = self.original, self.evaluation.distance
        compared = not isinstance(getattr(distance, "reference", None), Path)
        if isinstance(data, LatentSource):
            if isinstance(distance, FrechetDistance):
                data.prepare(compared)
        elif compared:
            data.load("train")  # of couplings, which are no part of it
        distance.prepare(self.reference_images)

    def located(self) -> Self:
        """The same experiment with absolute paths, for processes in other folders, such as Ray's.

        Relative paths are resolved against this process's working folder.
        """
        placed: Self = serialization.with_paths(self, absolute)
        if not isinstance(placed.data, LatentSource | Couplings):
            return placed
        return replace(placed, data=placed.data.located())

    def moved(self, before: Path, now: Path) -> Self:
        """The same experiment after a run's folder was moved from ``before`` to ``now``.

        A path that no longer exists is changed if the file is at the same place relative to
        ``now``.
        """
        followed: Self = serialization.with_paths(self, moved_paths.following(before, now))
        return followed

    def differences(self, other: "Experiment") -> dict[str, tuple[Any, Any]]:
        """The settings that differ from ``other``: its value and the own one, by dotted name.

        Two paths count as equal in two cases: a relative path, which earlier versions saved without
        its start, and an absolute one that ends with it; and a path that no longer exists and an
        existing one of the same name, as the file was moved.
        """
        here, there = self.flatten(), other.flatten()
        pairs = {n: (there.get(n), here.get(n)) for n in sorted(here.keys() | there.keys())}
        return {n: p for n, p in pairs.items() if p[0] != p[1] and not moved_paths.same(*p)}

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of JSON values; ``schema`` is their version."""
        return {"schema": SCHEMA, **serialization.to_dict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``, also for older versions; ValueError for invalid settings."""
        return serialization.from_dict(cls, migrated(data))

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Self], tuple[dict[str, Any]]]:
        """Pickled as a dictionary, so that another process imports a user's classes by name."""
        return type(self).from_dict, (self.to_dict(),)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that ``save`` wrote."""
        return cls.from_dict(json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Writes readable, complete JSON atomically."""
        write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A copy with fields replaced by dotted name, such as ``{"optim.lr": 3e-4}``.

        Names of older versions are accepted too.
        """
        data, changes = present_names(self.to_dict(), changes)
        return serialization.overridden(type(self), data, changes)

    def flatten(self) -> dict[str, Any]:
        """All settings by dotted name."""
        return serialization.flatten(serialization.to_dict(self))
