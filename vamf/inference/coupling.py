"""Makes rectified couplings from a trained flow, shard by shard; can be interrupted and resumed."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vamf.data.couplings import CouplingsIndex
from vamf.data.shards import begin, intact, write_shard
from vamf.experiment_settings import require_at_least
from vamf.files import shown
from vamf.flow.samplers import heun
from vamf.inference.load import Trained
from vamf.rng import generator
from vamf.training.evaluation import classes, conditioned
from vamf.training.step.precision import matmul_precision
from vamf.training.step.replayed import replayed
from vamf.typing import AverageVelocity, Label, Sample

AT_ONCE = 256
"""Pairs that are integrated together."""
LINE_S = 30.0
"""Seconds between two lines about a shard."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """How couplings are made: z_1 = e is moved to z_0 = x by dz/dt = u(z, t, t) (2511.23342)."""

    count: int
    """Number of pairs, at least 2: some are held out."""
    steps: int = 25
    """Steps of Heun's rule, with two evaluations of the network each; the last step is Euler's."""
    seed: int = 0
    """Seed of noise and labels: pair i is a function of seed and i, whatever the count."""
    scale: float | None = None
    """Guidance scale, for a network that takes one as an input; by default the experiment's."""
    shard: int = 4096
    """Pairs in a shard; an interrupted job loses at most one shard."""

    def __post_init__(self) -> None:
        require_at_least(2, count=self.count)
        require_at_least(1, steps=self.steps, shard=self.shard)

    def index(self, trained: Trained) -> CouplingsIndex:
        """The description of the pairs.

        Raises ValueError for a network that has learnt no velocity.
        """
        experiment = trained.experiment
        if not experiment.loss.learns_velocity:
            raise ValueError(
                f"couplings need a run that has learnt a velocity; {trained.path} is a DDPM, "
                "which predicts noise"
            )
        scale = experiment.evaluation.guidance_scale if self.scale is None else self.scale
        return CouplingsIndex(
            run=str(trained.path),
            step=trained.step,
            weights=checksum(trained.ema),
            steps=self.steps,
            seed=self.seed,
            guidance_scale=scale,
            source=experiment.original,
            shape=trained.shape,
            classes=experiment.model.classes,
            count=self.count,
            shard=self.shard,
        )


def checksum(net: torch.nn.Module) -> str:
    """SHA-256 of a network's weights, by name."""
    total = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        total.update(name.encode())
        total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def couple(plan: Coupling, trained: Trained, out: Path) -> Iterator[str]:
    """Writes couplings of a trained flow into ``out``; yields a line for each shard and each
    ``LINE_S`` within one, then how to train on them.

    Intact shards are not made again. Raises ValueError for a network that has learnt no velocity,
    for a guidance scale that it was not trained with, and if ``out`` holds other files, or
    couplings of another network or with other settings.
    """
    index = plan.index(trained)
    chosen = {"evaluation.seed": plan.seed, "evaluation.guidance_scale": index.guidance_scale}
    trained = trained._replace(experiment=trained.experiment.override(chosen))
    begin(index, out)
    u = replayed(trained.ema, trained.experiment.compute, device_of(trained.ema))
    for number in index.shards:
        places = index.of(number)
        name = f"shard {number + 1} of {len(index.shards)}"
        if intact(out, index, number):
            yield f"{name}, {len(places)} pairs: is there"
            continue
        found, last = [], time.monotonic()
        for start in range(places.start, places.stop, AT_ONCE):
            part = range(start, min(start + AT_ONCE, places.stop))
            found.append(integrated(trained, part, plan, u))
            if (now := time.monotonic()) - last >= LINE_S and part.stop < places.stop:
                yield f"{name}: {part.stop - places.start} of {len(places)} pairs"
                last = now
        pairs, labels = (torch.cat(some) for some in zip(*found, strict=True))
        write_shard(out, index, number, pairs[:, None], labels)
        yield f"{name}, {len(places)} pairs: written"
    yield f"train on them: --set data.kind=Couplings data.root={shown(out)}"


def device_of(net: torch.nn.Module) -> torch.device:
    """The device of a network's weights."""
    return next(net.parameters()).device


def integrated(
    trained: Trained, indices: range, plan: Coupling, u: AverageVelocity | None = None
) -> tuple[Tensor, Label]:
    """The pairs (x, e) with these numbers, (n, 2, *shape), and their labels, (n,), on the CPU.

    ``u``, if given, computes the network. Labels are 0 without classes. Raises ValueError if the
    ODE does not end in finite numbers.
    """
    experiment, shape = trained.experiment, trained.shape
    device = device_of(trained.ema)
    e = noise(plan.seed, indices, shape).to(device)
    number = experiment.model.classes
    y = classes(plan.seed, indices, number, device) if number else None
    with torch.inference_mode(), matmul_precision(experiment.compute):
        _, velocity = conditioned(u or trained.ema, experiment, y)
        x = heun(velocity, e, plan.steps, last_euler=True)
    if not x.isfinite().all():
        raise ValueError(f"samples of {trained.path} must be finite; got others of {plan}")
    labels = torch.zeros(len(e), dtype=torch.long) if y is None else y.cpu()
    return torch.stack([x, e], dim=1).cpu(), labels


def noise(seed: int, indices: range, shape: tuple[int, ...]) -> Sample:
    """Standard normal noise of the pairs with these numbers, not that of any evaluation."""
    draws = [torch.randn(shape, generator=generator(seed, "coupling", i)) for i in indices]
    return torch.stack(draws)
