"""Reads runs that have ended, by their own folders or by that of their search."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vamf import commands, serialization
from vamf.cluster.search.trials import Trial, checked, load_trials, trial_folder
from vamf.experiment import Experiment
from vamf.run_layout import EXPERIMENT, META, SAMPLES, STEPS, SUMMARY, SWEEP
from vamf.store import Store
from vamf.training.loop import Summary


class EndedRun(NamedTuple):
    """A run that was trained to its end."""

    folder: Path
    experiment: Experiment
    summary: Summary

    @property
    def picture(self) -> Path | None:
        """The last picture of samples that it has kept."""
        return max((self.folder / SAMPLES).glob(f"{STEPS}.png"), default=None)


def ended_runs(folder: Path, *, best: bool = False) -> list[EndedRun]:
    """The run in a folder; of a search those of its complete trials, or of the best one.

    Raises ValueError if the folder has neither, or nothing that has ended.
    """
    if Store.of(str(folder)) is not None:
        raise ValueError(f"runs and searches must be in folders; got {Store.of(str(folder))}")
    if (folder / SWEEP).exists():
        return _of_search(folder, best)
    if not folder.is_dir():
        beside = {
            p.parent.name for name in (EXPERIMENT, SWEEP) for p in folder.parent.glob(f"*/{name}")
        }
        hint = serialization.nearest(folder.name, sorted(beside)) if beside else ""
        raise ValueError(f"{folder} is not a folder{hint}")
    if (folder / META).exists():
        raise ValueError(f"{folder} is a checkpoint; give the folder of its run")
    if not (folder / EXPERIMENT).exists():
        raise ValueError(
            f"{folder} must be a run or a search; it has neither {EXPERIMENT} nor {SWEEP}"
        )
    return [_of_run(folder)]


def _of_run(folder: Path) -> EndedRun:
    if not (folder / SUMMARY).exists():
        raise ValueError(
            f"{folder} has not ended: {SUMMARY} is missing; to resume: {_resume(folder)}"
        )
    with _named(folder):
        experiment = Experiment.load(folder / EXPERIMENT)
        summary = Summary.load(folder / SUMMARY)
    if summary.stopped is not None:
        raise ValueError(
            f"{folder} ended early, at step {summary.step} of {experiment.steps}: {summary.stopped}"
        )
    return EndedRun(folder, experiment, summary)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Raises ValueError that names the folder if a file in it is damaged, or of a later version."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} cannot be read: {error}") from None


def _resume(folder: Path) -> str:
    search = folder.absolute().parent.parent
    if (search / SWEEP).exists():
        return commands.shown("tune", "--resume", search)
    return commands.shown("train", "--resume", folder)


def _of_search(folder: Path, best: bool) -> list[EndedRun]:
    with _named(folder):
        objectives = json.loads((folder / SWEEP).read_text())["objectives"]
        trials = [t for t in load_trials(folder) if checked(t, objectives).complete]
    if not trials:
        resume = commands.shown("tune", "--resume", folder)
        raise ValueError(f"no trial of {folder} is complete; to resume: {resume}")
    if best:
        trials = [min(trials, key=lambda trial: _by_distance(trial, objectives))]
    return [run for trial in trials for run in _of_trial(folder, trial)]


def _by_distance(trial: Trial, objectives: list[str]) -> list[float]:
    """Orders trials by the last objective, the distance; the first of them is on the front."""
    return [trial.metrics[name].value for name in reversed(objectives)]


def _of_trial(search: Path, trial: Trial) -> list[EndedRun]:
    folder = trial_folder(search, trial.number)
    found = [_of_run(path.parent) for path in folder.glob(f"*/{SUMMARY}")]
    if len(found) != len(trial.seeds):
        raise ValueError(
            f"{folder} must hold a run for each of its {len(trial.seeds)} seeds; got {len(found)}"
        )
    return sorted(found, key=lambda run: run.experiment.seed)
