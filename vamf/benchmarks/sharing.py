"""Measures several trainings at the same time on this device, each in a process of its own."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from threading import BrokenBarrierError
from typing import Any

import torch

from vamf.benchmarks.step_time import Subject, trainer_of, warm_up
from vamf.benchmarks.timing import Row, Table, synchronise
from vamf.cluster.ray import shared_gpu
from vamf.cluster.ray.log_filters import quieten
from vamf.experiment import Experiment

SECONDS, STEPS = 3.0, 8
"""All train for so long, and for as long as so many steps take a training alone."""

PATIENCE_S = 300.0
"""The time that a process waits for the others to be ready."""

_barrier: Any = None  # of a process that trains


def sharing(subject: Subject, numbers: Sequence[int], threads: int) -> Table:
    """Samples per second of all trainings together, for several numbers of them.

    On the CPU they share the threads equally. Raises ValueError if they do not fit.
    """
    on_gpu, each = subject.device.type == "cuda", max(1, threads // max(numbers))
    seconds = max(SECONDS, STEPS * subject.step_seconds)
    batch, found = subject.experiment.batch, {}
    for n in numbers:
        found[n] = batch * sum(_rates(subject, n, each, seconds))
    rows = {
        f"{n} training{'s' * (n > 1)}": Row(
            value=rate, unit="samples/s", ratio=rate / found[numbers[0]]
        )
        for n, rate in found.items()
    }
    if not on_gpu:
        note = f"processes of {each} thread{'s' * (each > 1)} each"
    else:
        note = f"{'with' if shared_gpu.is_running() else 'without'} NVIDIA's MPS"
    return Table(rows=rows, notes=(note,))


def _rates(subject: Subject, n: int, threads: int, seconds: float) -> list[float]:
    """Steps per second of each of ``n`` trainings at once."""
    context = multiprocessing.get_context("spawn")
    given = subject.experiment.to_dict(), str(subject.device), subject.together, threads, seconds
    barrier = context.Barrier(n)
    with ProcessPoolExecutor(n, context, _begin, (barrier,)) as pool:
        tasks = [pool.submit(_rate, *given) for _ in range(n)]
        errors = [error for task in tasks if (error := task.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise ValueError(f"{n} trainings at once: {error}") from None
    return [task.result() for task in tasks]


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    quieten()


def _rate(
    settings: Mapping[str, Any], device_name: str, together: int, threads: int, seconds: float
) -> float:
    """Steps per second of one training, from when all are ready."""
    try:
        torch.set_num_threads(threads)
        experiment, device = Experiment.from_dict(settings), torch.device(device_name)
        step = trainer_of(experiment, device).train_step
        warm_up(step, experiment.compute.compile)
        synchronise(device)
    except BaseException:
        _barrier.abort()  # the others would wait for this one
        raise
    _barrier.wait(PATIENCE_S)
    start, taken = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(together):
            step()
        synchronise(device)
        taken += together
    return taken / passed
