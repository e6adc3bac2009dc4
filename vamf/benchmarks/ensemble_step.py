"""Measures how much faster an ensemble trains than single runs one after another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vamf.benchmarks.timing import Step, time_steps
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.schedules import BetaSchedule
from vamf.reproduction.ensemble.ensemble import Ensemble
from vamf.training.step.trainer import Trainer

CHUNK = 10
"""Steps that are timed together, as single steps on a GPU are too short to time."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds for one step of all members, one after another and together."""

    members: int
    single: float
    """One step of a single run, averaged over the members' betas."""
    ensemble: float
    """One step of all members together."""

    @property
    def ratio(self) -> float:
        """How many times faster the ensemble is."""
        return self.members * self.single / self.ensemble

    def __str__(self) -> str:
        return (
            f"{self.members} members: one after another {self.members * self.single * 1e3:.2f} ms, "
            f"together {self.ensemble * 1e3:.2f} ms a step: {self.ratio:.1f} times faster"
        )


def speed(
    experiment: Experiment,
    betas: Sequence[float],
    seeds: Sequence[int],
    device: torch.device,
    repeats: int = 20,
) -> Speed:
    """Times single steps at beta = 0, which need no proxy, at beta = 0.5, and of the ensemble.

    Values are medians over ``repeats`` synchronised rounds, in which the three take turns.
    """
    enough = max(experiment.steps, (repeats + 2) * CHUNK)  # two rounds of warm-up
    experiment = replace(experiment, steps=enough)
    ensemble = Ensemble(experiment, betas, seeds, device)
    steps = {
        "zero": _single(experiment, 0.0, device),
        "mixed": _single(experiment, 0.5, device),
        "ensemble": lambda: ensemble.advance(CHUNK),
    }
    seconds = {name: t / CHUNK for name, t in time_steps(steps, device, repeats).items()}
    zeros = sum(beta == 0 for beta in betas) / len(betas)
    return Speed(
        members=len(betas) * len(seeds),
        single=zeros * seconds["zero"] + (1 - zeros) * seconds["mixed"],
        ensemble=seconds["ensemble"],
    )


def _single(experiment: Experiment, beta: float, device: torch.device) -> Step:
    one = replace(experiment, beta=BetaSchedule(value=beta))
    trainer = Trainer(one, one.data.load("train"), Workers(device=device))

    def steps() -> None:
        for _ in range(CHUNK):
            trainer.train_step()

    return steps
