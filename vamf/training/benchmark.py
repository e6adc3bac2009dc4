"""How long a training step takes, as ratios between variants that are timed in turn."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.derivatives import textbook_derivative
from vamf.flow.losses import Draws, squared_norm
from vamf.flow.path import interpolate
from vamf.flow.schedules import BetaSchedule
from vamf.training.restoring import checkpoints
from vamf.training.saving import Saver
from vamf.training.trainer import Trainer
from vamf.typing import expand_like

Step = Callable[[], object]


def variants(experiment: Experiment, device: torch.device, compile: bool) -> dict[str, Step]:
    """Whole training steps, optimiser and moving average included, that differ in their loss.

    With ``compile`` two of them compiled as well.
    """
    plain = replace(experiment, beta=BetaSchedule(value=0.0))
    flow, mixed = plain.override({"times.prob_equal": 1.0}), plain.override({"beta.value": 0.5})
    steps = {
        "flow matching (r = t throughout)": _step(flow, device),
        "MeanFlow, beta = 0": _step(plain, device),
        "MeanFlow, beta = 0.5": _step(mixed, device),
        "MeanFlow, r = t through the jvp too": _step(plain, device, _whole_batch),
        "MeanFlow by the textbook": _step(plain, device, _with_graph),
    }
    if compile:
        on = {"compute.compile": True}
        steps["flow matching, compiled"] = _step(flow.override(on), device)
        steps["MeanFlow, beta = 0, compiled"] = _step(plain.override(on), device)
    return steps


def _step(
    experiment: Experiment,
    device: torch.device,
    loss: Callable[[Trainer, Draws], Tensor] | None = None,
) -> Step:
    dataset = experiment.data.load("train")
    trainer = Trainer(experiment, dataset, Workers(device=device))
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


def time_steps(steps: Mapping[str, Step], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each step over ``repeats`` rounds of all of them in turn, synchronised."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 2):
        for name, step in steps.items():
            _synchronise(device)
            start = time.perf_counter()
            step()
            _synchronise(device)
            if round_ >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def checkpoint_stalls(
    experiment: Experiment, device: torch.device, repeats: int = 5
) -> dict[str, float]:
    """Median seconds for which the training loop waits at a checkpoint.

    In the background, as a run does it: the loop copies the state. In the loop: it writes, too.
    """
    trainer = Trainer(experiment, experiment.data.load("train"), Workers(device=device))
    trainer.train_step()
    seconds: dict[str, list[float]] = {"in the background": [], "in the loop": []}
    with tempfile.TemporaryDirectory() as place:
        folder = checkpoints(experiment, Path(place))
        with Saver(folder) as saver:
            for _ in range(repeats):
                save = partial(saver.save, experiment, trainer.state_dict(), {})
                seconds["in the background"].append(_seconds(save, device))
                saver.drain()
                write = partial(folder.save, experiment, trainer.state_dict(), {})
                seconds["in the loop"].append(_seconds(write, device))
    return {how: statistics.median(values) for how, values in seconds.items()}


def _seconds(action: Step, device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    preset: str, experiment: Experiment, device: torch.device, repeats: int, compile: bool
) -> dict[str, Any]:
    """Seconds of the variants of a step, stalls by checkpoints as shares of their interval, MiB
    held at most, and seconds to a run's first step."""
    seconds = time_steps(variants(experiment, device, compile), device, repeats)
    interval = experiment.checkpoint.every * seconds["MeanFlow, beta = 0.5"]
    stalls = checkpoint_stalls(experiment, device)
    return {
        "seconds": seconds,
        "checkpoint_stalls": {how: value / interval for how, value in stalls.items()},
        "peak_memory_mib": peak_memory(device),
        "seconds_to_first_step": seconds_to_first_step(preset),
    }


def told(found: Mapping[str, Any], before: Mapping[str, float]) -> str:
    """A line for each variant, milliseconds and ratio to the first, then stalls, memory and start.

    ``before`` has an earlier measurement's seconds: its ratios are set beside.
    """
    seconds: Mapping[str, float] = found["seconds"]
    reference = next(iter(seconds))
    lines = []
    for name, value in seconds.items():
        line = f"{name:36} {value * 1e3:8.1f} ms  {value / seconds[reference]:5.2f} x"
        if name in before and reference in before:
            line += f"   before {before[name] / before[reference]:5.2f} x"
        lines.append(line)
    for how, share in found["checkpoint_stalls"].items():
        lines.append(f"{f'a checkpoint, written {how}':36} {share:.4%} of its interval")
    memory, start = found["peak_memory_mib"], found["seconds_to_first_step"]
    lines.append(f"peak memory {memory:.0f} MiB; {start:.1f} s from the command to the first step")
    return "\n".join(lines)


def peak_memory(device: torch.device) -> float:
    """MiB: what the process has held at most on the CPU, or what was allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def seconds_to_first_step(preset: str) -> float:
    """From the command ``python -m jobs.train`` to its first step, in a process of its own."""
    with tempfile.TemporaryDirectory() as storage:
        mark = Path(storage) / "first" / "progress"
        command = [sys.executable, "-m", "jobs.train", preset, "--storage", storage]
        command += ["--name", "first", "--steps", "100000", "--log-every", "1"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not mark.exists():
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
                time.sleep(0.05)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
