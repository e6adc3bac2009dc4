"""Measures the time and memory of variants of a training step on this machine."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import nn

from vamf.benchmarks.timing import Row, Step, Table, process_memory, synchronise, time_steps
from vamf.data.dataset import ImageSet
from vamf.distributed import Workers
from vamf.errors import first_line
from vamf.experiment import Experiment
from vamf.flow.derivatives import textbook_derivative
from vamf.flow.guidance import with_augment_labels
from vamf.flow.objectives.alpha_flow import AlphaFlowLoss, AlphaSchedule
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.semigroup import SemigroupLoss
from vamf.flow.objectives.terminal_velocity import BoundaryTime, TerminalVelocityLoss
from vamf.flow.objectives.terms import LossTerms, squared_norm
from vamf.flow.path import interpolate
from vamf.flow.schedules import BetaSchedule
from vamf.models.dit import DiTConfig
from vamf.models.unet import UNetConfig
from vamf.training.step.objective import Inputs, Objective
from vamf.training.step.trainer import Trainer, Wrap
from vamf.typing import expand_like

WARM_UP = {False: 2, True: 6}
"""Warm-up steps, eager or compiled: CUDA graphs are captured from the fourth step on."""

SHARES = (0.25, 0.75)
"""Shares of samples with r = t that are compared, in addition to the experiment's own."""

PARTS = 4
"""Micro-batches that are compared with the whole batch."""

STOPPED = "terminal velocity, derivative stopped"
"""The name of its variant."""

ALONE = {"cuda"}
"""Types of device on which only one variant is kept at a time, as graphs hold memory."""

TOGETHER = {"cuda": 16}
"""Steps between two synchronisations; one on the CPU, which does not run asynchronously."""

Loss = Callable[[Objective, Inputs], LossTerms]
"""Computes a step's loss in the place of the objective."""


@dataclass(frozen=True)
class Subject:
    """The experiment that is measured, and the device."""

    experiment: Experiment
    device: torch.device
    repeats: int

    @property
    def compiled(self) -> bool:
        """Whether the experiment's own step is compiled."""
        return self.experiment.compute.compile

    @property
    def together(self) -> int:
        """Steps that are timed together."""
        return TOGETHER.get(self.device.type, 1)

    @cached_property
    def step_seconds(self) -> float:
        """Seconds of one step of the experiment, to which shares of a run refer."""
        step = trainer_of(self.experiment, self.device).train_step
        warm_up(step, self.compiled)
        found = time_steps({"own": step}, self.device, self.repeats, together=self.together)
        return found["own"]


def trainer_of(
    experiment: Experiment, device: torch.device, wrap: Wrap = lambda objective: objective
) -> Trainer:
    """A trainer as in the training loop, without stages, with images in memory on the device."""
    experiment = replace(experiment, stages=())
    dataset = experiment.data.load("train")
    if isinstance(dataset, ImageSet):
        dataset = dataset.to(device)
    return Trainer(experiment, dataset, Workers(device=device), wrap)


def variants(experiment: Experiment) -> dict[str, tuple[Experiment, Loss | None]]:
    """Experiments whose steps differ in their loss, each with what replaces it or None.

    If the experiment is compiled, compiled variants come first, then the same eagerly. Flow
    matching is first in each group, as the others are compared with it. A DDPM has one variant.
    """
    eager = experiment.override({"compute.compile": False})
    if not experiment.loss.learns_velocity:
        losses = {"DDPM": eager}
    else:
        own = eager.loss if eager.loss.mixes_tangent else MeanFlowLoss()
        plain = replace(eager, beta=BetaSchedule(value=0.0), loss=own)
        losses = {
            "flow matching (r = t throughout)": plain.override({"times.prob_equal": 1.0}),
            "MeanFlow, beta = 0": plain,
            "MeanFlow, beta = 0.5": plain.override({"beta.value": 0.5}),
        } | {
            f"MeanFlow, beta = 0, r = t for {share:.0%}": plain.override(
                {"times.prob_equal": share}
            )
            for share in SHARES
            if share != experiment.times.prob_equal
        }
        losses |= _others(plain)
    found: dict[str, tuple[Experiment, Loss | None]] = {}
    if experiment.compute.compile:
        on = {"compute.compile": True}
        found = {f"{name}, compiled": (own.override(on), None) for name, own in losses.items()}
        found |= {name: (own.override(on), None) for name, own in _with_less_memory(eager).items()}
    found |= {name: (own, None) for name, own in losses.items()}
    if experiment.loss.learns_velocity and experiment.guidance is None:
        through = losses[STOPPED].override({"loss.stop_derivative": False})
        found["terminal velocity, as published"] = through, None
        found["MeanFlow, r = t through the jvp too"] = plain, _whole_batch
        found["MeanFlow by the textbook"] = plain, _with_graph
    return found


def _with_less_memory(experiment: Experiment) -> dict[str, Experiment]:
    """The experiment itself with the settings that save memory, as far as it has them."""
    found = {}
    if experiment.batch % PARTS == 0:
        found[f"own objective, {PARTS} micro-batches, compiled"] = {"compute.accumulate": PARTS}
    if isinstance(experiment.model, UNetConfig | DiTConfig):
        found["own objective, checkpointing, compiled"] = {"compute.checkpointing": True}
    return {name: experiment.override(changes) for name, changes in found.items()}


def _others(plain: Experiment) -> dict[str, Experiment]:
    """The other objectives, without a beta and with the times of ``plain``."""
    plain = replace(plain, probe=None)
    half = AlphaFlowLoss(weight=plain.loss.weight, alpha=AlphaSchedule(value=0.5))
    boundary = None if plain.guidance else BoundaryTime()
    terminal = TerminalVelocityLoss(stop_derivative=True, boundary=boundary)
    found = {"alpha-Flow, alpha = 0.5": replace(plain, loss=half)}
    found[STOPPED] = replace(plain, loss=terminal)
    if plain.times.prob_equal > 0:
        found["semigroup"] = replace(plain, loss=SemigroupLoss())
    return found


class _Replaced(nn.Module):
    """An objective whose loss is computed by another function."""

    def __init__(self, objective: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.objective, self.loss = objective, loss

    def forward(self, inputs: Inputs) -> LossTerms:
        assert isinstance(self.objective, Objective)
        return self.loss(self.objective, inputs)


def _step(experiment: Experiment, device: torch.device, loss: Loss | None) -> Step:
    """A training step, including optimiser and moving average.

    ``loss`` takes the objective's place, in a step that is not compiled.
    """
    if loss is None:
        return trainer_of(experiment, device).train_step
    return trainer_of(experiment, device, partial(_Replaced, loss=loss)).train_step


def _whole_batch(objective: Objective, inputs: Inputs) -> LossTerms:
    """The objective's own loss, as if no sample were known to have r = t."""
    return objective(inputs._replace(draws=inputs.draws._replace(n_equal=0)))


def _with_graph(objective: Objective, inputs: Inputs) -> LossTerms:
    """MeanFlow with u and du/dt of the whole batch from one differentiable ``torch.func.jvp``.

    It has the weight of the objective's loss, but none of its other terms.
    """
    draws, u = inputs.draws, objective.u
    if inputs.augment_labels is not None:
        u = with_augment_labels(u, inputs.augment_labels, times=2)
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    value, du_dt = textbook_derivative(u, z, draws.r, draws.t, v_cond)
    correction = expand_like(draws.t - draws.r, z) * du_dt.detach()
    error = squared_norm(value - (v_cond - correction))
    loss = (objective.experiment.loss.weight(error) * error).mean()
    return LossTerms(loss, error.detach(), squared_norm(correction), 0)


def warm_up(step: Step, compiled: bool) -> None:
    """Takes the steps that are not timed."""
    for _ in range(WARM_UP[compiled]):
        step()


def steps(subject: Subject) -> Table:
    """Milliseconds of the variants of a step, and the memory of each.

    On a CPU, whose speed varies, variants take turns; on a GPU each is timed alone, as it may need
    all memory. A variant that is refused or does not fit is left out, with a note. Raises
    ValueError if there is no other.
    """
    device, alone = subject.device, subject.device.type in ALONE
    held: dict[str, Step] = {}
    seconds: dict[str, float] = {}
    memory, notes = {}, []
    for name, (experiment, loss) in variants(subject.experiment).items():
        try:
            held[name], memory[name] = _ready(experiment, loss, device)
            if alone:
                seconds |= _timed(held, subject)
        except torch.OutOfMemoryError:
            notes.append(f"{name}: out of memory at batch {experiment.batch}")
        except ValueError as refusal:
            notes.append(f"{name}: {first_line(refusal)}")
        if alone:
            held.clear()
            gc.collect()
            torch.cuda.empty_cache()
    seconds |= _timed(held, subject) if held else {}
    if not seconds:
        raise ValueError(f"no step can be timed: {'; '.join(notes)}")
    first = next(iter(seconds.values()))
    rows = {
        name: Row(value=s * 1e3, unit="ms", ratio=s / first, mib=memory[name])
        for name, s in seconds.items()
    }
    if device.type != "cuda":
        rows["peak memory of the process"] = Row(value=process_memory(), unit="MiB")
    return Table(rows=rows, notes=tuple(notes))


def _timed(held: dict[str, Step], subject: Subject) -> dict[str, float]:
    return time_steps(held, subject.device, subject.repeats, together=subject.together)


def _ready(
    experiment: Experiment, loss: Loss | None, device: torch.device
) -> tuple[Step, float | None]:
    """A warmed-up step, and its peak MiB of GPU memory, including weights and state."""
    if device.type != "cuda":
        step = _step(experiment, device, loss)
        warm_up(step, experiment.compute.compile)
        return step, None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = _step(experiment, device, loss)
    warm_up(step, experiment.compute.compile)
    synchronise(device)
    return step, (torch.cuda.max_memory_allocated(device) - before) / 2**20
