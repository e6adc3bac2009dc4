"""The GPU memory of a training step, estimated from small passes, and what fits into a GPU."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from vamf.experiment_settings import divisors
from vamf.models.dit import DiTConfig
from vamf.models.unet import UNetConfig
from vamf.training.step.trainer import Trainer

FEW = 4
"""Samples of the smallest passes."""
MANY = 4
"""The largest passes hold about so many times the bytes of the weights: they have their peak where
the backward pass begins, as a whole batch has, and not at its end."""
USABLE = 0.92
"""Part of the free memory that a step may need; the rest is for evaluations, libraries and gaps."""
ROOM = 1 / 3
"""Part of a GPU's memory that is free for an evaluation beside captured steps."""
PART = 1 / 4
"""Part of a GPU's memory that an evaluation's pass with a gradient takes at most, about."""
GIB = 2**30


class Memory(NamedTuple):
    """Bytes that a step of a trainer needs, and bytes that are free."""

    least: float
    """With few samples: gradients, weights and their copies, at the end of the backward pass."""
    fixed: float
    """Weights and their copies where the backward pass begins."""
    sample: float
    """What each sample of a micro-batch adds to that."""
    moments: float
    """The optimiser's state, before the first step."""
    sums: float
    """The sums of the gradients of several micro-batches."""
    free: float
    """What this process can still allocate on its GPU."""
    share: int
    """Samples of this worker in a step."""

    def of(self, parts: int) -> float:
        """Bytes that a step in so many micro-batches needs."""
        passes = max(self.least, self.fixed + self.sample * self.share / parts)
        return passes + self.moments + self.sums * (parts > 1)

    @property
    def fewest_parts(self) -> int | None:
        """The fewest micro-batches of which one fits; None if none does."""
        fit = (k for k in divisors(self.share) if self.of(k) <= USABLE * self.free)
        return next(fit, None)


def measured(trainer: Trainer) -> Memory | None:
    """The memory of a trainer's steps on its GPU; None if not even a few samples fit.

    Changes no weights and no random numbers of training.
    """
    weights = sum(p.numel() * p.element_size() for p in trainer.net.parameters())
    share = trainer.experiment.batch // trainer.workers.world
    try:
        _passes(trainer, FEW)  # compiles
        few, more = _passes(trainer, FEW), _passes(trainer, 2 * FEW)
        held = max(more.held - few.held, 1) / max(more.samples - few.samples, 1)
        many = _passes(trainer, math.ceil(MANY * weights / held))
    except torch.OutOfMemoryError:
        return None
    fixed = max(few.held - held * few.samples, 0)
    return Memory(
        least=few.peak,
        fixed=fixed,
        sample=(many.peak - fixed) / many.samples,
        moments=0 if trainer.optimiser.state else 2 * weights,
        sums=weights,
        free=_free(trainer.workers.device),
        share=share,
    )


class _Passes(NamedTuple):
    samples: int
    held: int
    """Bytes between the two passes: weights, and what the samples need."""
    peak: int
    """The most bytes at any time."""


def _passes(trainer: Trainer, samples: int) -> _Passes:
    """The forward and backward pass of about so many of the next step's samples, or of all."""
    device, objective = trainer.workers.device, trainer.objective
    inputs = objective.inputs(trainer.step)._replace(moved=objective.programs()[-1])  # the largest
    part = inputs.micro_batch(0, max(len(inputs.draws.x) // samples, 1))
    trainer.optimiser.zero_grad()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with trainer.execution.step():
        loss = trainer.objective.terms(part).loss
        held = torch.cuda.memory_allocated(device) - before
        loss.backward()
    trainer.optimiser.zero_grad()
    return _Passes(len(part.draws.x), held, torch.cuda.max_memory_allocated(device) - before)


def _free(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def choose_micro_batches(trainer: Trainer) -> None:
    """With ``accumulate`` auto, splits a trainer's steps so that they fit, on all workers alike.

    A resumed run has at least as many as before. Raises ValueError if not even one sample fits.
    """
    workers = trainer.workers
    if trainer.experiment.compute.accumulate != "auto" or workers.device.type != "cuda":
        return
    memory = measured(trainer)
    fewest = memory and memory.fewest_parts
    found = workers.gather(str(fewest or 0))
    if "0" in found:
        raise ValueError(out_of_memory(trainer))
    least = max(trainer.micro_batches, *map(int, found))
    share = trainer.experiment.batch // workers.world
    trainer.split(next(k for k in divisors(share) if k >= least))


def make_room(trainer: Trainer) -> None:
    """Forgets captured steps, whose memory nothing else can use, if a GPU has little room beside.

    An evaluation needs memory, too. The steps are captured again afterwards.
    """
    device = trainer.workers.device
    if device.type == "cuda" and _free(device) < ROOM * torch.cuda.mem_get_info(device)[1]:
        _forget_steps(trainer)


def samples_beside(trainer: Trainer) -> int:
    """Samples of an evaluation's pass with a gradient: those of a step's pass, or fewer.

    A pass takes about ``PART`` of the GPU's memory at most; ``make_room`` leaves more.
    """
    device, share = trainer.workers.device, trainer.samples_at_once
    if device.type != "cuda":
        return share
    of_gpu = torch.cuda.max_memory_allocated(device) / torch.cuda.mem_get_info(device)[1]
    return math.ceil(share / max(of_gpu / PART, 1))


def _forget_steps(trainer: Trainer) -> None:
    trainer.split(trainer.micro_batches)
    trainer.optimiser.zero_grad()
    gc.collect()
    torch.cuda.empty_cache()


def out_of_memory(trainer: Trainer) -> str:
    """One line on what a step needs, after it did not fit, and on options with which it fits."""
    _forget_steps(trainer)
    whole, options = measured(trainer), []
    for checkpointing in (False, True):
        with _checkpointing(trainer, checkpointing):
            memory = measured(trainer) if _can(trainer, checkpointing) else None
        if memory and (parts := memory.fewest_parts):
            names = ["--compute.checkpointing"] * checkpointing
            names += [f"--accumulate {parts}"] * (parts > 1)
            options.append(f"{' '.join(names)} ({memory.of(parts) / GIB:.1f} GiB)")
    needs = f"about {whole.of(1) / GIB:.1f} GiB" if whole else "more"
    return (
        f"a step must fit into the free {_free(trainer.workers.device) / GIB:.1f} GiB of the GPU; "
        f"one of {trainer.experiment.batch // trainer.workers.world} samples needs {needs}: use "
        + (" or ".join(options) or "a smaller network, or a GPU with more memory")
    )


def _can(trainer: Trainer, checkpointing: bool) -> bool:
    return not checkpointing or isinstance(trainer.experiment.model, UNetConfig | DiTConfig)


@contextmanager
def _checkpointing(trainer: Trainer, on: bool) -> Iterator[None]:
    """Within the block, the objective's blocks are computed again in the backward pass, or not."""
    objective, before = trainer.objective, trainer.objective.execution
    objective.execution = replace(before, compute=replace(before.compute, checkpointing=on))
    try:
        yield
    finally:
        objective.execution = before
