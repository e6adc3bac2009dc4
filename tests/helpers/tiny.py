"""A tiny experiment for tests of whole runs, and what became of its weights and its figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from vamf.presets import PRESETS
from vamf.training.checkpoints.checkpoint import Checkpoint

SETTINGS: dict[str, Any] = {
    "model.channels": 8,
    "beta.value": 0.5,
    "ema": 0.9,
    "batch": 16,
    "steps": 6,
    "log_every": 1,
    "optim.warmup": 0,
    "evaluation.every": 6,
    "evaluation.variance_samples": 8,
    "evaluation.gradient_batches": 2,
    "evaluation.distance.samples": 40,
    "checkpoint.every": 2,
}
"""What makes the preset digits tiny."""

TINY = PRESETS["digits"].override(SETTINGS)

ABSURD = {"optim.lr": 1e30, "checkpoint.every": 1, "ema": 0.5}
"""The weights of step 1 are so large that the loss of step 2 is not finite."""


def options(changes: Mapping[str, Any]) -> list[str]:
    """The command line that makes the preset digits tiny, with further settings."""
    settings = SETTINGS | dict(changes)
    return ["--set", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]


def checkpoint(directory: Path, step: int) -> Checkpoint:
    """The checkpoint of a run at a step."""
    return Checkpoint(directory / "checkpoints" / f"step_{step:08d}")


def same(one: Any, other: Any) -> bool:
    """Whether two states, nested dictionaries and lists of tensors, agree bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def tracked(uri: str, directory: object) -> list[Run]:
    """MLflow's runs of a run's folder, or of its place in a store."""
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "vamf"]
    return client.search_runs([experiment.experiment_id], f"tags.directory = '{directory}'")


def history(uri: str, run: Run, key: str) -> dict[int, float]:
    """A curve of a run; no step may occur twice, or before another one."""
    points = MlflowClient(uri).get_metric_history(run.info.run_id, key)
    steps = [point.step for point in points]
    assert steps == sorted(set(steps)), steps
    return {point.step: point.value for point in points}
