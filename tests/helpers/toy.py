"""A tiny run on points: the experiment, its trainers and their saved state, and how it dies."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vamf.data.dataset import Dataset
from vamf.data.toys import Toy
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.experiment_settings import Checkpoints, Evaluation
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.training.step.trainer import Trainer

TOY = Experiment(
    data=Toy(),
    model=MLPConfig(hidden=(8,), embedding=4),
    batch=8,
    steps=12,
    log_every=2,
    ema=0.9,
    evaluation=Evaluation(
        every=100,
        distance=SlicedWasserstein(samples=8, directions=2, repetitions=2),
        variance_samples=4,
        gradient_batches=3,
    ),
    checkpoint=Checkpoints(every=4, keep=9),
)


def trainer(
    experiment: Experiment,
    workers: Workers = Workers(),  # noqa: B008
    dataset: Dataset | None = None,
) -> Trainer:
    """A trainer before its first step, on the experiment's own data unless others are given."""
    return Trainer(experiment, dataset or experiment.data.load("train"), workers)


def after(steps: int, own: Trainer) -> Trainer:
    """The same trainer after so many more steps."""
    for _ in range(steps):
        own.train_step()
    return own


def saved(own: Trainer) -> dict[str, Any]:
    """A trainer's state, written as a checkpoint is and read again."""
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


class Died(Exception):
    """The end of a run that ``dies_at`` a step."""


def dies_at(step: int | None) -> Callable[[Mapping[str, Any]], None]:
    """What a session reports to, so that its run dies after this step; None: never."""

    def report(progress: Mapping[str, Any]) -> None:
        if progress["step"] == step:
            raise Died

    return report
