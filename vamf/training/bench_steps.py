"""What a training step costs on this machine, in variants, and what delays it."""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from vamf.data.dataset import ImageSet
from vamf.data.streaming import StreamedSet
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.derivatives import textbook_derivative
from vamf.flow.losses import Draws, squared_norm
from vamf.flow.path import interpolate
from vamf.flow.schedules import BetaSchedule
from vamf.training.benchmark import (
    Row,
    Step,
    Table,
    process_memory,
    synchronise,
    time_steps,
)
from vamf.training.restoring import checkpoints
from vamf.training.saving import Saver
from vamf.training.trainer import Trainer
from vamf.typing import expand_like

WARM_UP = {False: 2, True: 6}
"""Rounds before a step is timed, eager or compiled: CUDA graphs are captured from the fourth on."""

TOGETHER = {"cuda": 16}
"""Steps between two synchronisations; one on the CPU, where nothing runs ahead."""

LOADED = 32
"""Steps over which the waiting for data is measured."""


@dataclass(frozen=True)
class Subject:
    """What is measured, and where."""

    experiment: Experiment
    device: torch.device
    repeats: int

    @property
    def compiled(self) -> bool:
        """Whether the experiment's own step is."""
        return self.experiment.compute.compile

    @property
    def together(self) -> int:
        """Steps that are timed together."""
        return TOGETHER.get(self.device.type, 1)

    @cached_property
    def step_seconds(self) -> float:
        """One step of the experiment itself: what shares of a run refer to."""
        step = trainer_of(self.experiment, self.device).train_step
        _warm_up(step, self.compiled)
        found = time_steps({"own": step}, self.device, self.repeats, together=self.together)
        return found["own"]


def trainer_of(experiment: Experiment, device: torch.device) -> Trainer:
    """A trainer as the training loop makes it, with data that fit on the device."""
    dataset = experiment.data.load("train")
    if isinstance(dataset, ImageSet):
        dataset = dataset.to(device)
    return Trainer(experiment, dataset, Workers(device=device))


def variants(experiment: Experiment) -> dict[str, tuple[Experiment, Callable | None]]:
    """Experiments whose steps differ in their loss, some by a loss that is given beside it.

    Compiled ones too if the experiment is compiled. Of a DDPM there is only one.
    """
    eager = experiment.override({"compute.compile": False})
    compiled = experiment.compute.compile
    if experiment.ddpm is not None:
        found: dict[str, tuple[Experiment, Callable | None]] = {"DDPM": (eager, None)}
        return found | ({"DDPM, compiled": (experiment, None)} if compiled else {})
    plain = replace(eager, beta=BetaSchedule(value=0.0))
    flow = plain.override({"times.prob_equal": 1.0})
    three = {
        "flow matching (r = t throughout)": flow,
        "MeanFlow, beta = 0": plain,
        "MeanFlow, beta = 0.5": plain.override({"beta.value": 0.5}),
    }
    found = {name: (variant, None) for name, variant in three.items()}
    if experiment.guidance is None:
        found["MeanFlow, r = t through the jvp too"] = plain, _whole_batch
        found["MeanFlow by the textbook"] = plain, _with_graph
    if compiled:
        on = {"compute.compile": True}
        found |= {f"{name}, compiled": (v.override(on), None) for name, v in three.items()}
    return found


def _step(
    experiment: Experiment, device: torch.device, loss: Callable[[Trainer, Draws], Tensor] | None
) -> Step:
    """A whole training step, optimiser and moving average included."""
    trainer = trainer_of(experiment, device)
    if loss is None:
        return trainer.train_step

    def step() -> None:
        draws, _ = trainer.objective.draw(trainer.step)
        trainer.optimiser.zero_grad()
        loss(trainer, draws).backward()
        trainer.optimiser.step()
        trainer.ema.update_parameters(trainer.net)
        trainer.step += 1

    return step


def _whole_batch(trainer: Trainer, draws: Draws) -> Tensor:
    objective = trainer.experiment.loss
    return objective(trainer.net, draws._replace(n_equal=0), beta=0.0, v_hat=trainer.v_hat).loss


def _with_graph(trainer: Trainer, draws: Draws) -> Tensor:
    """u and du/dt of the whole batch from one differentiable ``torch.func.jvp``."""
    z, v_cond = interpolate(draws.x, draws.e, draws.t)
    u, du_dt = textbook_derivative(trainer.net, z, draws.r, draws.t, v_cond)
    target = v_cond - expand_like(draws.t - draws.r, z) * du_dt.detach()
    error = squared_norm(u - target)
    return (trainer.experiment.loss.weight(error) * error).mean()


def _warm_up(step: Step, compiled: bool) -> None:
    for _ in range(WARM_UP[compiled]):
        step()


def steps(subject: Subject) -> Table:
    """Milliseconds of the variants of a step, timed in turn, and what memory each takes."""
    device, ready, memory, notes = subject.device, {}, {}, []
    for name, (experiment, loss) in variants(subject.experiment).items():
        try:
            ready[name], memory[name] = _ready(experiment, loss, device)
        except torch.OutOfMemoryError:
            notes.append(f"{name}: out of memory at batch {experiment.batch}")
        if device.type == "cuda":  # or what one has held is missing to the next
            gc.collect()
            torch.cuda.empty_cache()
    if not ready:
        raise ValueError(f"no step fits into memory at batch {subject.experiment.batch}")
    seconds = time_steps(ready, device, subject.repeats, together=subject.together)
    first = next(iter(seconds.values()))
    rows = {
        name: Row(value=s * 1e3, unit="ms", ratio=s / first, mib=memory[name])
        for name, s in seconds.items()
    }
    if device.type != "cuda":
        rows["peak memory of the process"] = Row(value=process_memory(), unit="MiB")
    return Table(rows=rows, notes=tuple(notes))


def _ready(
    experiment: Experiment, loss: Callable | None, device: torch.device
) -> tuple[Step, float | None]:
    """A step that is warm, and the MiB that it took of a GPU, its weights and state included."""
    if device.type != "cuda":
        step = _step(experiment, device, loss)
        _warm_up(step, experiment.compute.compile)
        return step, None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = _step(experiment, device, loss)
    _warm_up(step, experiment.compute.compile)
    synchronise(device)
    return step, (torch.cuda.max_memory_allocated(device) - before) / 2**20


def stalls(subject: Subject, rounds: int = 5) -> Table:
    """How long the training loop waits at a checkpoint, and as a share of their interval.

    In the background, as a run does it: the loop copies the state. In the loop: it writes, too.
    """
    experiment, device = subject.experiment, subject.device
    trainer = trainer_of(experiment, device)
    trainer.train_step()
    found: dict[str, list[float]] = {"in the background": [], "in the loop": []}
    with tempfile.TemporaryDirectory() as place:
        folder = checkpoints(experiment, Path(place))
        with Saver(folder) as saver:
            for _ in range(rounds):
                save = partial(saver.save, experiment, trainer.state_dict(), {})
                found["in the background"].append(_call(save, device))
                saver.drain()
                write = partial(folder.save, experiment, trainer.state_dict(), {})
                found["in the loop"].append(_call(write, device))
    medians = {how: statistics.median(values) for how, values in found.items()}
    interval = experiment.checkpoint.every * subject.step_seconds
    rows = {f"written {how}": Row(value=s * 1e3, unit="ms") for how, s in medians.items()}
    share = f"share of {experiment.checkpoint.every} steps, in the background"
    rows[share] = Row(value=100 * medians["in the background"] / interval, unit="%")
    return Table(rows=rows)


def _call(action: Step, device: torch.device) -> float:
    """Seconds until a call returns; what it leaves to the device is not waited for."""
    synchronise(device)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def waits(subject: Subject) -> Table:
    """The share of a step that waits for data from disk, or draws those that are in memory."""
    experiment, device = subject.experiment, subject.device
    trainer = trainer_of(experiment, device)
    data = trainer.dataset
    if not isinstance(data, StreamedSet):

        def draw() -> object:
            trainer.step += 1
            return data.batch(trainer.step, experiment.batch, experiment.seed, device)

        drawn = time_steps({"": draw}, device, subject.repeats, together=subject.together)[""]
        share = drawn / subject.step_seconds
        return Table(
            rows={"share of a step, drawing its batch": Row(value=100 * share, unit="%")},
            notes=("no step waits for files: the data are in memory",),
        )
    _warm_up(trainer.train_step, subject.compiled)
    synchronise(device)
    data.waiting_share()
    start = time.perf_counter()
    for _ in range(LOADED):
        trainer.train_step()
    synchronise(device)
    share, elapsed = data.waiting_share(), time.perf_counter() - start
    return Table(
        rows={
            "share of a step, waiting for files": Row(value=100 * share, unit="%"),
            "a step that reads them": Row(value=1e3 * elapsed / LOADED, unit="ms"),
        }
    )
