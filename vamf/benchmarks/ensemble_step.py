"""Measures how much faster an ensemble trains than single runs one after another."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vamf.benchmarks.timing import Step, time_steps
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.schedules import BetaSchedule
from vamf.reproduction.ensemble.ensemble import Ensemble
from vamf.reproduction.protocol import Protocol
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
    """Times single steps at beta = 0, which need no proxy, at another beta, and of the ensemble.

    Values are medians over ``repeats`` synchronised rounds, in which these take turns, in the
    middle of training, as an objective may move.
    """
    enough = max(experiment.steps, 2 * (repeats + 2) * CHUNK)  # two rounds of warm-up
    experiment = replace(experiment, steps=enough)
    ensemble = Ensemble(experiment, betas, seeds, device)
    ensemble.load_state_dict({**ensemble.state_dict(), "step": enough // 2})
    shares = Counter(0.0 if beta == 0 else max(betas) for beta in betas)
    singles = {f"beta {beta}": _single(experiment, beta, device) for beta in shares}
    steps = {**singles, "ensemble": lambda: ensemble.advance(CHUNK)}
    seconds = {name: t / CHUNK for name, t in time_steps(steps, device, repeats).items()}
    alone = sum(count * seconds[f"beta {beta}"] for beta, count in shares.items()) / len(betas)
    return Speed(members=len(betas) * len(seeds), single=alone, ensemble=seconds["ensemble"])


def speeds(protocol: Protocol, device: torch.device) -> str:
    """A line for the betas, or for each objective, of a reproduction on its first set."""
    lines = []
    for program in replace(protocol, sets=protocol.sets[:1]).programs:
        experiment, betas = protocol.experiment(*program), protocol.betas_of(program)
        lines.append(f"{program}: {speed(experiment, betas, protocol.seeds, device)}")
    return "\n".join(lines)


def _single(experiment: Experiment, beta: float, device: torch.device) -> Step:
    one = replace(experiment, beta=BetaSchedule(value=beta))
    trainer = Trainer(one, one.data.load("train"), Workers(device=device))
    trainer.step = experiment.steps // 2

    def steps() -> None:
        for _ in range(CHUNK):
            trainer.train_step()

    return steps
