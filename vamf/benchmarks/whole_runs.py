"""Measures whole runs: the time to the first step, and the throughput by number of workers."""

import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from vamf import commands, tracking
from vamf.benchmarks.step_time import Subject
from vamf.benchmarks.synthetic_inputs import without_weights
from vamf.benchmarks.timing import Row, Table
from vamf.cluster.train.progress import progress
from vamf.cpus import usable
from vamf.experiment import Experiment
from vamf.metrics.distances import FrechetDistance
from vamf.presets import preset as preset_of
from vamf.run_layout import DATABASE, RUN
from vamf.tracking.run import sqlite

ERRORS = "stderr"
"""The file with a run's stderr, beside its folder."""

LOGS, FIRST = 10, 3
"""How often a run logs, and how many of the logged times are left out as warm-up."""

ENOUGH_S = 900.0
"""A run that takes longer is stopped."""


def first_step(preset: str, subject: Subject) -> Table:
    """Seconds from the command ``train`` to its first step; if compiled, also with a warm cache."""
    changes = without_weights(subject.experiment)
    experiment = subject.experiment.override({"steps": 10**9, "log_every": 1} | changes)
    name = "from the command to the first step"
    with tempfile.TemporaryDirectory() as cache:
        # A new cache, as the first start might otherwise use an earlier compilation.
        caches = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
        env = caches if subject.compiled else {}
        rows = {name: Row(value=_until_first(preset, experiment, subject, env), unit="s")}
        if subject.compiled:
            again = _until_first(preset, experiment, subject, env)
            rows[f"{name}, compiled before"] = Row(value=again, unit="s")
    return Table(rows=rows, notes=("without Inception, whose weights are missing",) * bool(changes))


def _until_first(
    preset: str, experiment: Experiment, subject: Subject, env: Mapping[str, str]
) -> float:
    start = time.perf_counter()
    with _training(preset, experiment, subject, env, []) as (process, folder):
        while progress(folder) < 1:
            if process.poll() is not None:
                raise _ended(process, folder)
            time.sleep(0.05)
        return time.perf_counter() - start


def scaling(preset: str, subject: Subject, workers: Sequence[int], threads: int) -> Table:
    """Samples per second of short runs under Ray Train, with the same batch for every worker.

    Computed from the times that the runs log. On the CPU the workers share the threads equally.
    """
    on_gpus, each = subject.device.type == "cuda", max(1, threads // max(workers))
    found: dict[int, float] = {}
    notes: list[str] = []
    for n in workers:
        if on_gpus and n > (available := torch.cuda.device_count()):
            notes.append(f"{n} workers: not run, as each needs a GPU and {available} are available")
            continue
        env = {} if on_gpus else {"OMP_NUM_THREADS": str(each)}
        seconds = _logged_step(preset, _short(subject, n), subject, n, env)
        found[n] = n * subject.experiment.batch / seconds
    if not found:
        raise ValueError("; ".join(notes))
    if not on_gpus:
        notes.append(
            f"CPU processes of {each} thread{'s' * (each > 1)} each: they share "
            f"{usable()} cores, caches and memory, as machines of their own would not"
        )
    first = next(iter(found))
    rows = {
        f"{n} worker{'s' * (n > 1)}, batch {n * subject.experiment.batch}": Row(
            value=rate, unit="samples/s", ratio=rate / found[first]
        )
        for n, rate in found.items()
    }
    return Table(rows=rows, notes=tuple(notes))


def _short(subject: Subject, workers: int) -> Experiment:
    """A run of about ten seconds with as little evaluation as possible."""
    every = min(max(int(1 / subject.step_seconds), 5), 100)
    least: dict[str, Any] = {
        "batch": workers * subject.experiment.batch,
        "log_every": every,
        "steps": LOGS * every,
        "checkpoint.every": LOGS * every,
        "evaluation.every": LOGS * every,
        "evaluation.variance_samples": 2,
        "evaluation.gradient_batches": 2,
    }
    if isinstance(subject.experiment.evaluation.distance, FrechetDistance):
        least |= {"evaluation.distance.samples": 40, "evaluation.distance.also": ()}
    return subject.experiment.override(least | without_weights(subject.experiment))


def _logged_step(
    preset: str, experiment: Experiment, subject: Subject, workers: int, env: Mapping[str, str]
) -> float:
    """Median seconds of a step, from the times that a run logs."""
    more = ["--scaling.workers", str(workers)]
    with _training(preset, experiment, subject, env, more) as (process, folder):
        try:
            process.wait(ENOUGH_S)
        except subprocess.TimeoutExpired:
            raise ValueError(f"a run with {workers} workers took over {ENOUGH_S:.0f} s") from None
        if process.returncode:
            raise _ended(process, folder)
        run = json.loads((folder / RUN).read_text())["run_id"]
        points = tracking.history(_database(folder.parent), run, "time/seconds")
    pairs = list(pairwise(points))[FIRST - 1 :]
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def _database(storage: Path) -> str:
    return sqlite(storage / DATABASE)


@contextmanager
def _training(
    preset: str,
    experiment: Experiment,
    subject: Subject,
    env: Mapping[str, str],
    more: Sequence[str],
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Starts a run on this machine; yields its process and its folder, and ends both."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        storage = Path(path)
        command = commands.argv("train", preset, *more)
        command += ["--storage", path, "--name", "run", "--tracking", _database(storage)]
        command += ["--scaling.gpus", "0"] if subject.device.type == "cpu" else []
        command += ["--set", *_settings(preset, experiment)]
        here = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with (storage / ERRORS).open("wb") as errors:
            process = subprocess.Popen(
                command, env={**here, **env}, stdout=subprocess.DEVNULL, stderr=errors
            )
        try:
            yield process, storage / "run"
        finally:
            _end(process)


def _settings(preset: str, experiment: Experiment) -> list[str]:
    """The options that turn the preset into this experiment."""
    start, after = preset_of(preset), experiment.flatten()
    before = start.flatten()
    changes = {name: value for name, value in after.items() if before.get(name, ...) != value}
    assert start.override(changes) == experiment
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()]


def _end(process: subprocess.Popen, patience: float = 30.0) -> None:
    """Interrupts a run as Ctrl-C does, so that its child processes end too."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ended(process: subprocess.Popen, folder: Path) -> ValueError:
    lines = (folder.parent / ERRORS).read_text(errors="replace").strip().splitlines()
    why = lines[-1] if lines else f"status {process.returncode}"
    return ValueError(f"{commands.shown('train')} ended: {why.removeprefix('error: ')}")
