"""Checkpoints: folders that describe themselves, appear whole or not at all, and are pruned."""

import json
import math
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vamf import values
from vamf.experiment import Experiment
from vamf.files import sync
from vamf.store import Store
from vamf.training.fetching import fetch, fetched
from vamf.training.manifest import MANIFEST, STATE, damage, entry, write_tensors

EXPERIMENT, META = "experiment.json", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: ``experiment.json``, ``state.pt`` (tensors), ``meta.json`` (figures).

    ``manifest.json`` holds their checksums.
    """

    path: Path

    @property
    def step(self) -> int:
        """Training steps taken."""
        return int(self.path.name.removeprefix("step_"))

    def metrics(self) -> dict[str, float]:
        """What was measured at this step; empty if nothing was."""
        return self._meta()["metrics"]

    def made_on(self) -> str | None:
        """The workers that trained up to here, in words; None if they were not written down."""
        return self._meta()["made_on"]

    def _meta(self) -> dict[str, Any]:
        try:
            meta = json.loads((self.path / META).read_text())
            return {"made_on": None} | meta | {"metrics": meta["metrics"]}
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged: {META}: {error}") from error

    def check(self) -> None:
        """Raises ValueError, which says what is wrong, unless all files are what was written."""
        if wrong := damage(self.path):
            raise ValueError(f"checkpoint {self.path} is damaged: {wrong}")

    def experiment(self) -> Experiment:
        """The experiment that this is a state of; ValueError if the file is damaged."""
        try:
            return Experiment.load(self.path / EXPERIMENT)
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.path} is not a readable checkpoint: {error}") from error

    @property
    def schema(self) -> int:
        """The version of vamf's experiments that it was saved with."""
        return json.loads((self.path / EXPERIMENT).read_text()).get("schema", 1)

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The state, as ``Trainer.state_dict`` gave it; ValueError if a file is damaged."""
        self.check()
        try:
            return torch.load(self.path / STATE, map_location=device, weights_only=True)
        except (OSError, EOFError, RuntimeError, IndexError, pickle.UnpicklingError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"checkpoint {self.path} is damaged: {reason}") from error

    def require(self, experiment: Experiment) -> None:
        """Raises ValueError, which names what differs, unless this is a state of ``experiment``."""
        if found := experiment.differences(self.experiment()):
            differ = ", ".join(
                f"{n} {there} there, {here} here" for n, (there, here) in found.items()
            )
            raise ValueError(f"checkpoint {self.path} is of another experiment: {differ}")

    def load_for(self, experiment: Experiment, device: torch.device | str) -> dict[str, Any]:
        """The state, if it is one of ``experiment``; ValueError names what differs otherwise."""
        self.require(experiment)
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
        paths = [p for p in self.path.glob("step_*") if p.is_dir() and not p.is_symlink()]
        found = map(Checkpoint, paths)
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def at(self, step: int) -> Checkpoint:
        """That of a step, whether it exists or not."""
        return Checkpoint(self.path / f"step_{step:08d}")

    def latest(self) -> Checkpoint | None:
        """The newest one, damaged or not, if any."""
        return next(reversed(self.all()), None)

    def intact(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whose checksums hold, if any, and what is wrong with those after it."""
        wrong: list[str] = []
        for checkpoint in reversed(self.all()):
            try:
                checkpoint.check()
                return checkpoint, wrong
            except ValueError as error:
                wrong.append(str(error))
        return None, wrong

    def tidy(self, after: int) -> None:
        """Hides the checkpoints of steps after one, and deletes what was left half written.

        What is hidden is neither used nor counted any more. For a run that nobody works on.
        """
        for checkpoint in self.all():
            if checkpoint.step > after:
                hidden = self.path / f".{checkpoint.path.name}.damaged"
                shutil.rmtree(hidden, ignore_errors=True)
                checkpoint.path.rename(hidden)
        for left in (*self.path.glob(".step_*.partial"), *self.path.glob(".step_*.removed")):
            shutil.rmtree(left, ignore_errors=True)

    def best(self) -> Checkpoint | None:
        """The one with the smallest figure among those that were measured, and are finite."""
        figures = {c: self._figure(c) for c in self.all()}
        finite = [c for c, figure in figures.items() if math.isfinite(figure)]
        return min(finite, key=figures.__getitem__, default=None)

    def _figure(self, checkpoint: Checkpoint) -> float:
        try:
            return checkpoint.metrics().get(self.best_by, math.nan)
        except ValueError:  # a damaged one is never the best
            return math.nan

    def save(
        self,
        experiment: Experiment,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        made_on: str | None = None,
    ) -> Checkpoint:
        """Writes a checkpoint aside, syncs it to disk, renames it into place, and prunes.

        Raises OSError, and leaves nothing half-written behind, where there is no space.
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
        if final.exists():  # left by a run that saved it and died before it went on
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
    """Writes a checkpoint's files, the manifest last, and waits until they are on the disk."""
    folder.mkdir(parents=True)
    experiment.save(folder / EXPERIMENT)
    (folder / META).write_text(json.dumps(meta))
    entries = {name: entry(folder / name) for name in (EXPERIMENT, META)}
    entries[STATE] = write_tensors(state, folder / STATE)
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n")
    for path in (*folder.iterdir(), folder):
        sync(path)


def _remove(folder: Path) -> None:
    """Deletes a checkpoint, which first loses its name: a process killed here leaves no half."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, or the best one of the run whose folder ``path`` is.

    ``path`` may be the address of an object store; what is needed is then downloaded.
    Raises ValueError, naming the path, if there is none.
    """
    if (store := Store.of(str(path))) is None:
        return _found(path)
    try:
        checkpoint = _found(fetched(store))
        if not (checkpoint.path / STATE).exists():  # a run's: so far its figures alone are here
            fetch(store, checkpoint.path)
        return checkpoint
    except OSError as error:
        raise ValueError(f"no checkpoint could be read from {store}: {error}") from None


def _found(path: Path) -> Checkpoint:
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
