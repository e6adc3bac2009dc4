"""How long a training step takes, as ratios between variants that are timed in turn."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from vamf.training.trainer import Trainer
from vamf.typing import expand_like

Step = Callable[[], None]


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


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    preset: str, experiment: Experiment, device: torch.device, repeats: int, compile: bool
) -> dict[str, Any]:
    """Seconds of the variants of a step, MiB held at most, and seconds to a run's first step."""
    seconds = time_steps(variants(experiment, device, compile), device, repeats)
    memory = peak_memory(device)
    start = seconds_to_first_step(preset)
    return {"seconds": seconds, "peak_memory_mib": memory, "seconds_to_first_step": start}


def told(found: Mapping[str, Any], before: Mapping[str, float]) -> str:
    """A line for each variant, milliseconds and ratio to the first, then memory and start.

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
