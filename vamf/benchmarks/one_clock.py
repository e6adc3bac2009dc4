"""How many steps each objective takes in the same seconds; the answer is a search space."""

import gc
import pprint
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vamf.benchmarks.step_time import trainer_of, warm_up
from vamf.benchmarks.timing import synchronise, timed
from vamf.errors import first_line
from vamf.experiment import Experiment
from vamf.reproduction.objectives import changes, methods
from vamf.training.step.trainer import Trainer

EVALUATIONS = 8
"""Evaluations of each training: at the same seconds, as they are at the same shares of steps."""

TOGETHER, REPEATS = 4, 5
"""Steps between two looks at the clock, and how often; the median counts."""

SHARES = (0.05, 0.35, 0.65, 0.95)
"""Shares of training at which the steps of an objective that moves are timed; the mean counts."""


class Pace(NamedTuple):
    """What an objective's steps take."""

    compiling: float
    """Seconds that the first such steps on this machine take longer, as kernels are compiled. No
    part of a training's seconds: a trial compiles, if at all, before its first step."""
    first: float
    """Seconds of a training's first steps, in which a graph is recorded, beyond later ones'."""
    step: float
    """Seconds of a step."""
    gib: float | None
    """Peak memory in GiB; None without a GPU."""

    def steps(self, seconds: float) -> int:
        """The steps that a training of so many seconds has."""
        return int((seconds - self.first) / self.step)


@dataclass(frozen=True)
class Clock:
    """The steps of all objectives in the same seconds."""

    experiment: Experiment
    seconds: float
    """Seconds of training, with the first steps and without evaluation."""
    paces: Mapping[str, Pace]
    refused: Mapping[str, str]
    """Why the experiment does not go with some objectives."""

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of an objective, with its steps."""
        steps = self.paces[name].steps(self.seconds)
        return {
            **changes(self.experiment, name),
            "steps": steps,
            "evaluation.every": -(-steps // EVALUATIONS),
            "checkpoint.every": steps,
            "log_every": max(steps // 50, 1),
            "optim.warmup": min(self.experiment.optim.warmup, steps // 10),
        }

    def format(self) -> str:
        """A line for each objective."""
        lines = [f"{'':28}{'compiling':>11}{'first':>9}{'step':>12}{'peak':>12}{'steps':>10}"]
        for name, pace in self.paces.items():
            peak = "" if pace.gib is None else f"{pace.gib:.1f} GiB"
            steps = pace.steps(self.seconds)
            lines.append(
                f"{name:28}{pace.compiling:9.1f} s{pace.first:7.1f} s"
                f"{pace.step * 1e3:9.2f} ms{peak:>12}{steps:10,}"
            )
        return "\n".join([*lines, *(f"{name:28} {why}" for name, why in self.refused.items())])

    def space(self, preset: str, title: str) -> str:
        """A module that ``vamf tune`` takes: every point is an objective."""
        named = {name: self.settings(name) for name in self.paces}
        return SPACE.format(
            title=title, preset=preset, named=pprint.pformat(named, sort_dicts=False)
        )


SPACE = '''"""{title}."""

import optuna

PRESET = {preset!r}
OBJECTIVES = ("eval/gradient_variance", "eval/distance")
NAMED = {named}
POINTS = tuple({{"objective": name}} for name in NAMED)


def sampler(seed):
    return optuna.samplers.BruteForceSampler(seed=seed)


def space(trial):
    return NAMED[trial.suggest_categorical("objective", [*NAMED])]
'''
"""A search space with the names and settings of its points."""


def measure(experiment: Experiment, device: torch.device, seconds: float) -> Clock:
    """Times the steps of all objectives on this machine.

    Raises ValueError if one takes as long for its first steps as the whole training may, and for an
    experiment with stages.
    """
    if experiment.stages:
        raise ValueError(
            f"each training must have one objective: stages must be empty; got {experiment.stages}"
        )
    paces, refused = {}, {}
    for name in methods(experiment):
        try:
            own = experiment.override(changes(experiment, name))
        except ValueError as error:
            refused[name] = first_line(error)
            continue
        paces[name] = pace = _pace(own, device)
        _free(device)
        if pace.steps(seconds) < EVALUATIONS:
            raise ValueError(
                f"the seconds of a training must hold {EVALUATIONS} steps; got {seconds:g}, and "
                f"{name} takes {pace.first:.1f} s at first, then {pace.step:.3f} s a step"
            )
    return Clock(experiment, seconds, paces, refused)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _pace(experiment: Experiment, device: torch.device) -> Pace:
    cold, _ = _begun(experiment, device)  # compiles, which no later steps do
    _free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warm, trainer = _begun(experiment, device)
    steps = trainer.step
    shares = SHARES if experiment.loss.moves else (0.0,)
    step = statistics.mean(_seconds_at(trainer, share) for share in shares)
    gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    first = max(warm - steps * step, 0.0)
    return Pace(compiling=max(cold - warm, 0.0), first=first, step=step, gib=gib)


def _begun(experiment: Experiment, device: torch.device) -> tuple[float, Trainer]:
    """The seconds of a new trainer's first steps, and the trainer."""
    trainer = trainer_of(experiment, device)
    start = time.perf_counter()
    warm_up(trainer.train_step, experiment.compute.compile)
    synchronise(device)
    return time.perf_counter() - start, trainer


def _seconds_at(trainer: Trainer, share: float) -> float:
    """Median seconds of a step where so much of training is done."""
    trainer.step = int(share * trainer.experiment.steps)
    device = trainer.workers.device
    return statistics.median(timed(trainer.train_step, device, TOGETHER) for _ in range(REPEATS))
