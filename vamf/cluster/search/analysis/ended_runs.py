"""Reads runs that have ended, by their own folders or by that of their search."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vamf import commands, serialization
from vamf.cluster.search.trials import Trial, checked, load_trials
from vamf.errors import StoreError
from vamf.experiment import Experiment
from vamf.run_layout import (
    CHECKPOINTS,
    EVALUATIONS,
    EXPERIMENT,
    META,
    SAMPLES,
    STEPS,
    SUMMARY,
    SWEEP,
    TRIAL,
    trial_name,
)
from vamf.store import StoragePath, Store, read
from vamf.training.checkpoints.remote_checkpoints import working_copy
from vamf.training.evaluation_log import Evaluated, evaluations
from vamf.training.loop import Summary

READ = frozenset((EXPERIMENT, EVALUATIONS, META, SUMMARY, SWEEP, TRIAL))
"""Names of the files that are read, besides pictures of samples."""


class EndedRun(NamedTuple):
    """A run that was trained to its end."""

    place: StoragePath
    """Where it is."""
    folder: Path
    """The same, or a copy of what is read of it if that is a store."""
    experiment: Experiment
    summary: Summary
    label: str = ""
    """What a search calls its trial."""

    @property
    def evaluations(self) -> list[Evaluated]:
        """The evaluations that it has kept, by step."""
        return evaluations(self.folder)

    @property
    def picture(self) -> Path | None:
        """The last picture of samples that it has kept."""
        return max((self.folder / SAMPLES).glob(f"{STEPS}.png"), default=None)


def ended_runs(place: str | Path, *, best: bool = False) -> list[EndedRun]:
    """The run in a folder or store; of a search those of its complete trials, or of the best one.

    Raises ValueError if there is neither, or nothing that has ended, or a store does not answer.
    """
    if (store := Store.of(str(place))) is not None:
        return _ended(_copied(store), store, best)
    folder = Path(place)
    if not folder.is_dir():
        beside = {
            p.parent.name for name in (EXPERIMENT, SWEEP) for p in folder.parent.glob(f"*/{name}")
        }
        hint = serialization.nearest(folder.name, sorted(beside)) if beside else ""
        raise ValueError(f"{folder} is not a folder{hint}")
    return _ended(folder, folder, best)


def _copied(store: Store) -> Path:
    """A folder of this machine with what is read of a run or search, downloaded anew."""
    folder = working_copy(store, "compare")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        paths = [
            path for path in map(PurePosixPath, store.names()) if CHECKPOINTS not in path.parts
        ]
        pictures = {path.parent: path for path in paths if path.parent.name == SAMPLES}  # the last
        for path in (*(path for path in paths if path.name in READ), *pictures.values()):
            (folder / path.parent).mkdir(parents=True, exist_ok=True)
            store.download(str(path), folder / path)
    except StoreError as error:
        raise ValueError(f"the storage must answer; got {error}") from None
    return folder


def _ended(folder: Path, place: StoragePath, best: bool) -> list[EndedRun]:
    if (folder / SWEEP).exists():
        return _of_search(folder, place, best)
    if (folder / META).exists():
        raise ValueError(f"{place} is a checkpoint; give the folder of its run")
    if not (folder / EXPERIMENT).exists():
        raise ValueError(
            f"{place} must be a run or a search; it has neither {EXPERIMENT} nor {SWEEP}"
        )
    return [_of_run(folder, place)]


def _of_run(folder: Path, place: StoragePath) -> EndedRun:
    if not (folder / SUMMARY).exists():
        raise ValueError(
            f"{place} has not ended: {SUMMARY} is missing; to resume: {_resume(place)}"
        )
    with _named(place):
        experiment = Experiment.load(folder / EXPERIMENT)
        summary = Summary.load(folder / SUMMARY)
    if summary.stopped is not None:
        raise ValueError(
            f"{place} ended early, at step {summary.step} of {experiment.steps}: {summary.stopped}"
        )
    return EndedRun(place, folder, experiment, summary)


@contextmanager
def _named(place: StoragePath) -> Iterator[None]:
    """Raises ValueError that names the place if a file in it is damaged, or of a later version."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} cannot be read: {error}") from None


def _resume(run: StoragePath) -> str:
    search = (run.absolute() if isinstance(run, Path) else run).parent.parent
    try:
        read(search, SWEEP)
    except (OSError, StoreError):
        return commands.shown("train", "--resume", run)
    return commands.shown("tune", "--resume", search)


def _of_search(folder: Path, place: StoragePath, best: bool) -> list[EndedRun]:
    with _named(place):
        objectives = json.loads((folder / SWEEP).read_text())["objectives"]
        trials = [t for t in load_trials(folder) if checked(t, objectives).complete]
    if not trials:
        resume = commands.shown("tune", "--resume", place)
        raise ValueError(f"no trial of {place} is complete; to resume: {resume}")
    if best:
        trials = [min(trials, key=lambda trial: _by_distance(trial, objectives))]
    return [run for trial in trials for run in _of_trial(folder, place, trial)]


def _by_distance(trial: Trial, objectives: list[str]) -> list[float]:
    """Orders trials by the last objective, the distance; the first of them is on the front."""
    return [trial.metrics[name].value for name in reversed(objectives)]


def _of_trial(search: Path, place: StoragePath, trial: Trial) -> list[EndedRun]:
    name = trial_name(trial.number)
    seeds = [path.parent.name for path in (search / name).glob(f"*/{SUMMARY}")]
    found = [_of_run(search / name / seed, place / name / seed) for seed in seeds]
    if len(found) != len(trial.seeds):
        raise ValueError(
            f"{place / name} must hold a run for each of its {len(trial.seeds)} seeds; "
            f"got {len(found)}"
        )
    named = (run._replace(label=trial.label) for run in found)
    return sorted(named, key=lambda run: run.experiment.seed)
