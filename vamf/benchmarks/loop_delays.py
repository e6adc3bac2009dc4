"""Measures delays of the training loop on this machine: checkpoints, and waiting for data."""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from vamf.benchmarks.step_time import Subject, trainer_of, warm_up
from vamf.benchmarks.timing import Row, Step, Table, synchronise, time_steps
from vamf.data.streaming import StreamedSet
from vamf.training.checkpoints.async_saver import Saver
from vamf.training.checkpoints.resume import checkpoints

LOADED = 32
"""Number of steps over which the waiting for data is measured."""


def stalls(subject: Subject, rounds: int = 5) -> Table:
    """How long the training loop waits at a checkpoint, and as a share of their interval.

    In the background, as in a run, the loop only copies the state; in the loop it also writes.
    """
    experiment, device = subject.experiment, subject.device
    trainer = trainer_of(experiment, device)
    trainer.train_step()
    found: dict[str, list[float]] = {"in the background": [], "in the loop": []}
    with tempfile.TemporaryDirectory() as path:
        folder = checkpoints(experiment, Path(path))
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
    """Seconds until a call returns, without waiting for the work it queued on the device."""
    synchronise(device)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def waits(subject: Subject) -> Table:
    """The share of a step spent waiting for data from disk, or drawing a batch from memory."""
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
    warm_up(trainer.train_step, subject.compiled)
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
