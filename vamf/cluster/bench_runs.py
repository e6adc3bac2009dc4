"""What only whole runs show: how soon they begin, and how they grow with their workers."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from vamf import tracking
from vamf.cluster.bars import progress
from vamf.cluster.launch import RUN
from vamf.cpus import usable
from vamf.experiment import Experiment
from vamf.metrics.distances import FrechetDistance
from vamf.presets import PRESETS
from vamf.tracking.run import sqlite
from vamf.training.bench_steps import Subject
from vamf.training.benchmark import Row, Table
from vamf.training.stand_ins import without_weights

ERRORS = "stderr"
"""The file beside a run that has what it told on stderr."""

LOGS, FIRST = 10, 3
"""Times that a run logs, and how many of them are left out as warm-up."""

ENOUGH_S = 900.0
"""A run that takes longer is ended."""


def first_step(preset: str, subject: Subject) -> Table:
    """Seconds from ``python -m jobs.train`` to its first step; compiled, also with a warm cache."""
    spared = without_weights(subject.experiment)
    experiment = subject.experiment.override({"steps": 10**9, "log_every": 1} | spared)
    name = "from the command to the first step"
    with tempfile.TemporaryDirectory() as cache:
        # A cache of its own, or the first start might find what another one compiled.
        caches = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
        env = caches if subject.compiled else {}
        rows = {name: Row(value=_until_first(preset, experiment, subject, env), unit="s")}
        if subject.compiled:
            again = _until_first(preset, experiment, subject, env)
            rows[f"{name}, compiled before"] = Row(value=again, unit="s")
    return Table(rows=rows, notes=("without Inception, whose weights are missing",) * bool(spared))


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
    """Samples a second of short runs under Ray Train, with the same batch for every worker.

    From the times that the runs log. On the CPU the workers have equally many of the threads.
    """
    on_gpus, each = subject.device.type == "cuda", max(1, threads // max(workers))
    found: dict[int, float] = {}
    notes: list[str] = []
    for n in workers:
        if on_gpus and n > (there := torch.cuda.device_count()):
            notes.append(f"{n} workers: not run, as they take a GPU each and {there} are there")
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
    """A run of some ten seconds that evaluates as little as it can."""
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
    """Median seconds of a step, by the times that a run logs."""
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
    return sqlite(storage / "mlflow.db")


@contextmanager
def _training(
    preset: str,
    experiment: Experiment,
    subject: Subject,
    env: Mapping[str, str],
    more: Sequence[str],
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A run by ``jobs.train`` on this machine, and its folder; both end with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        storage = Path(place)
        command = [sys.executable, "-m", "jobs.train", preset, *more]
        command += ["--storage", place, "--name", "run", "--tracking", _database(storage)]
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
    """The options that make the preset this experiment."""
    before, after = PRESETS[preset].flatten(), experiment.flatten()
    changes = {name: value for name, value in after.items() if before.get(name, ...) != value}
    assert PRESETS[preset].override(changes) == experiment
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()]


def _end(process: subprocess.Popen, patience: float = 30.0) -> None:
    """Ends a run as Ctrl-C does, so that what it started ends too."""
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
    return ValueError(f"jobs.train ended: {why.removeprefix('error: ')}")
