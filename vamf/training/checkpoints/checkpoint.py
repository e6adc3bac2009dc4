"""Checkpoints: self-describing folders that are written atomically and pruned."""

import json
import math
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vamf import serialization
from vamf.errors import first_line
from vamf.experiment import Experiment
from vamf.files import sync
from vamf.run_layout import (
    CHECKPOINTS,
    EXPERIMENT,
    MANIFEST,
    META,
    STATE,
    STEPS,
    step_name,
)
from vamf.store import Store
from vamf.training.checkpoints.manifest import damage, entry, write_tensors
from vamf.training.checkpoints.remote_checkpoints import fetch, fetched


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: ``experiment.json``, ``state.pt`` (tensors) and ``meta.json`` (metrics).

    ``manifest.json`` holds their checksums.
    """

    path: Path

    @property
    def step(self) -> int:
        """Training steps taken."""
        return int(self.path.name.removeprefix("step_"))

    def metrics(self) -> dict[str, float]:
        """The metrics of this step; empty if nothing was measured."""
        return self._meta()["metrics"]

    def made_on(self) -> str | None:
        """A description of the workers that trained up to this step; None if it was not saved."""
        return self._meta()["made_on"]

    def _meta(self) -> dict[str, Any]:
        try:
            meta = json.loads((self.path / META).read_text())
            return {"made_on": None} | meta | {"metrics": meta["metrics"]}
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged: {META}: {error}") from error

    def check(self) -> None:
        """Raises ValueError, which names the damage, unless all files match their checksums."""
        if wrong := damage(self.path):
            raise ValueError(f"checkpoint {self.path} is damaged: {wrong}")

    def experiment(self) -> Experiment:
        """The experiment of this checkpoint; ValueError if the file is damaged."""
        try:
            return Experiment.load(self.path / EXPERIMENT)
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.path} is not a readable checkpoint: {error}") from error

    @property
    def schema(self) -> int:
        """The schema version of the saved experiment."""
        return json.loads((self.path / EXPERIMENT).read_text()).get("schema", 1)

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The state, as returned by ``Trainer.state_dict``; ValueError if a file is damaged."""
        self.check()
        try:
            return torch.load(self.path / STATE, map_location=device, weights_only=True)
        except (OSError, EOFError, RuntimeError, IndexError, pickle.UnpicklingError) as error:
            reason = first_line(error)
            raise ValueError(f"checkpoint {self.path} is damaged: {reason}") from error

    def require(self, experiment: Experiment) -> None:
        """Raises ValueError with the differences unless ``experiment`` is the saved one."""
        if found := experiment.differences(self.experiment()):
            differ = ", ".join(
                f"{n} {there} there, {here} here" for n, (there, here) in found.items()
            )
            raise ValueError(f"checkpoint {self.path} is of another experiment: {differ}")

    def load_for(self, experiment: Experiment, device: torch.device | str) -> dict[str, Any]:
        """The state; raises ValueError with the differences for another experiment."""
        self.require(experiment)
        return self.load(device)


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    path: Path
    keep: int
    """Number of latest checkpoints that are kept."""
    best_by: str
    """The metric whose smallest value selects the best checkpoint, which is kept too."""

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        paths = [p for p in self.path.glob(STEPS) if p.is_dir() and not p.is_symlink()]
        found = map(Checkpoint, paths)
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, whether it exists or not."""
        return Checkpoint(self.path / step_name(step))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, damaged or not; None if there is none."""
        return next(reversed(self.all()), None)

    def intact(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, or None, and the errors of the newer, damaged ones."""
        wrong: list[str] = []
        for checkpoint in reversed(self.all()):
            try:
                checkpoint.check()
                return checkpoint, wrong
            except ValueError as error:
                wrong.append(str(error))
        return None, wrong

    def tidy(self, after: int) -> None:
        """Hides the checkpoints after a step, and deletes incomplete ones.

        Hidden checkpoints are neither used nor counted. No other process may be working on the run.
        """
        for checkpoint in self.all():
            if checkpoint.step > after:
                hidden = self.path / f".{checkpoint.path.name}.damaged"
                shutil.rmtree(hidden, ignore_errors=True)
                checkpoint.path.rename(hidden)
        for left in (*self.path.glob(f".{STEPS}.partial"), *self.path.glob(f".{STEPS}.removed")):
            shutil.rmtree(left, ignore_errors=True)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the smallest finite value of ``best_by``, if any."""
        values = {c: self._best_by_value(c) for c in self.all()}
        finite = [c for c, value in values.items() if math.isfinite(value)]
        return min(finite, key=values.__getitem__, default=None)

    def _best_by_value(self, checkpoint: Checkpoint) -> float:
        try:
            return checkpoint.metrics().get(self.best_by, math.nan)
        except ValueError:  # a damaged checkpoint is never the best
            return math.nan

    def save(
        self,
        experiment: Experiment,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        made_on: str | None = None,
    ) -> Checkpoint:
        """Writes a checkpoint atomically, syncs it to disk, and prunes old ones.

        Raises OSError if the disk is full; the incomplete checkpoint is deleted first.
        """
        final = self.at(state["step"]).path
        aside = self.path / f".{final.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        meta = {"step": state["step"], "made_on": made_on, "metrics": dict(metrics)}
        try:
            _write(aside, experiment, state, meta)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise OSError(error.errno, error.strerror, str(final)) from None
        if final.exists():  # an earlier attempt saved it and then died
            _remove(final)
        aside.rename(final)
        sync(self.path)
        self._prune()
        return Checkpoint(final)

    def _prune(self) -> None:
        best = self.best()
        for checkpoint in self.all()[: -self.keep]:
            if checkpoint != best:
                _remove(checkpoint.path)


def _write(
    folder: Path, experiment: Experiment, state: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Writes a checkpoint's files, the manifest last, and waits until they are on disk."""
    folder.mkdir(parents=True)
    experiment.save(folder / EXPERIMENT)
    (folder / META).write_text(json.dumps(meta))
    entries = {name: entry(folder / name) for name in (EXPERIMENT, META)}
    entries[STATE] = write_tensors(state, folder / STATE)
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n")
    for path in (*folder.iterdir(), folder):
        sync(path)


def _remove(folder: Path) -> None:
    """Renames and then deletes a checkpoint: a killed process leaves no incomplete checkpoint."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, or the best one if ``path`` is a run's folder.

    ``path`` may be the address of an object store: the files that are needed are downloaded. Raises
    ValueError, which names the path, if there is no checkpoint.
    """
    if (store := Store.of(str(path))) is None:
        return _found(path)
    try:
        checkpoint = _found(fetched(store))
        if not (checkpoint.path / STATE).exists():  # of a run, ``fetched`` has only metrics
            fetch(store, checkpoint.path)
        return checkpoint
    except OSError as error:
        raise ValueError(f"no checkpoint could be read from {store}: {error}") from None


def _found(path: Path) -> Checkpoint:
    if (path / STATE).exists():
        return Checkpoint(path.resolve())
    run = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    first = next(iter(sorted(run.glob(STEPS))), None)
    if first is None:
        known = [p.parent.parent.name for p in path.parent.glob(f"*/{CHECKPOINTS}/{STEPS}")]
        hint = serialization.nearest(path.name, sorted(set(known))) if known else ""
        raise ValueError(f"no checkpoint in {path}{hint}")
    key = Checkpoint(first).experiment().evaluation.distance.key
    folder = CheckpointFolder(path=run.resolve(), keep=1, best_by=f"eval/{key}")
    best = folder.best() or folder.latest()
    assert best is not None
    return best
