"""Checkpoints: folders that describe themselves, appear whole or not at all, and are pruned."""

import json
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vamf import values
from vamf.experiment import Experiment

STATE, EXPERIMENT, META = "state.pt", "experiment.json", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: ``experiment.json``, ``state.pt`` (tensors) and ``meta.json`` (figures)."""

    path: Path

    @property
    def step(self) -> int:
        """Training steps taken."""
        return int(self.path.name.removeprefix("step_"))

    def metrics(self) -> dict[str, float]:
        """What was measured at this step; empty if nothing was."""
        try:
            return json.loads((self.path / META).read_text())["metrics"]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged: {META}: {error}") from error

    def experiment(self) -> Experiment:
        """The experiment that this is a state of; ValueError if the file is damaged."""
        try:
            return Experiment.load(self.path / EXPERIMENT)
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.path} is not a readable checkpoint: {error}") from error

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The state, as ``Trainer.state_dict`` gave it; ValueError if the file is damaged."""
        try:
            return torch.load(self.path / STATE, map_location=device, weights_only=True)
        except (OSError, EOFError, RuntimeError, IndexError, pickle.UnpicklingError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"checkpoint {self.path} is damaged: {reason}") from error

    def load_for(self, experiment: Experiment, device: torch.device | str) -> dict[str, Any]:
        """The state, if it is one of ``experiment``; ValueError names what differs otherwise."""
        mine, other = experiment.flatten(), self.experiment().flatten()
        names = sorted(n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n))
        if names:
            differ = ", ".join(f"{n} {other.get(n)} there, {mine.get(n)} here" for n in names)
            raise ValueError(f"checkpoint {self.path} is of another experiment: {differ}")
        return self.load(device)


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    path: Path
    keep: int
    """How many of the latest stay."""
    best_by: str
    """The figure whose smallest value's checkpoint stays besides."""

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        found = (Checkpoint(path) for path in self.path.glob("step_*") if path.is_dir())
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint | None:
        """The newest one, if any."""
        return next(reversed(self.all()), None)

    def best(self) -> Checkpoint | None:
        """The one with the smallest figure among those that were measured, and are finite."""
        figures = {c: c.metrics().get(self.best_by, math.nan) for c in self.all()}
        finite = [c for c, figure in figures.items() if math.isfinite(figure)]
        return min(finite, key=figures.__getitem__, default=None)

    def save(
        self, experiment: Experiment, state: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> Checkpoint:
        """Writes a checkpoint aside, syncs it to disk, renames it into place, and prunes."""
        final = self.path / f"step_{state['step']:08d}"
        aside = self.path / f".{final.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        experiment.save(aside / EXPERIMENT)
        (aside / META).write_text(json.dumps({"step": state["step"], "metrics": dict(metrics)}))
        torch.save(dict(state), aside / STATE)
        for path in (*aside.iterdir(), aside):
            _sync(path)
        if final.exists():  # left by a run that saved it and died before it went on
            shutil.rmtree(final)
        aside.rename(final)
        _sync(self.path)
        self._prune()
        return Checkpoint(final)

    def _prune(self) -> None:
        best = self.best()
        for checkpoint in self.all()[: -self.keep]:
            if checkpoint != best:
                shutil.rmtree(checkpoint.path)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, or the best one of the run whose folder ``path`` is.

    Raises ValueError, naming the path, if there is none.
    """
    if (path / STATE).exists():
        return Checkpoint(path.resolve())
    run = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    first = next(iter(sorted(run.glob("step_*"))), None)
    if first is None:
        known = [p.parent.parent.name for p in path.parent.glob("*/checkpoints/step_*")]
        hint = values.nearest(path.name, sorted(set(known))) if known else ""
        raise ValueError(f"no checkpoint in {path}{hint}")
    key = Checkpoint(first).experiment().evaluation.distance.key
    folder = CheckpointFolder(path=run.resolve(), keep=1, best_by=f"eval/{key}")
    best = folder.best() or folder.latest()
    assert best is not None
    return best


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
