"""Searches in this process, one trial after the other: Optuna and the trials are real, Ray is not
there."""

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import optuna
import pytest
from helpers.tiny import TINY

from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner
from vamf.cluster.search.analysis.results import Results
from vamf.cluster.search.budget import BudgetClock
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.space import Space, points
from vamf.cluster.search.study import record_result, sampler
from vamf.cluster.search.trial_runner import run_trial
from vamf.cluster.search.trials import load_trials
from vamf.experiment import Experiment


def space_of(*points: Mapping[str, float]) -> Space:
    """Searches beta, from these points on."""
    found = SimpleNamespace(
        PRESET="digits",
        OBJECTIVES=("eval/loss_variance", "eval/distance"),
        POINTS=points,
        sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed),
        space=lambda trial: {"beta.value": trial.suggest_float("beta.value", 0.0, 1.0)},
    )
    return cast(Space, found)


SPACE = space_of({"beta.value": 0.0}, {"beta.value": 1.0})


def search(space: Space, sweep: Sweep, clock: BudgetClock) -> None:
    """What ``tune.search`` does."""
    study = optuna.create_study(
        study_name=sweep.name,
        storage=sweep.storage,
        directions=["minimize"] * 2,
        sampler=sampler(space, sweep),
        load_if_exists=True,
    )
    for point in points(space, sweep.experiment) if not study.trials else ():
        study.enqueue_trial(point)
    left = 100 if sweep.trials is None else sweep.trials - len(load_trials(sweep.directory))
    for _ in range(left):
        if clock.exhausted(load_trials(sweep.directory)):
            return
        trial = study.ask()
        run_trial(sweep, trial.number, dict(space.space(trial)))
        record_result(sweep, trial.number)


def add_seeds(space: Space, sweep: Sweep, clock: BudgetClock, wanted: Mapping[int, int]) -> None:
    """What ``tune.add_seeds`` does."""
    for trial in load_trials(sweep.directory):
        if trial.number in wanted:
            run_trial(sweep, trial.number, trial.settings, wanted[trial.number])


def published(sweep: Sweep, found: Results) -> Mapping[str, Path]:
    """Without its plot, which takes seconds."""
    return {name: sweep.directory / name for name in ("table", "front")}


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Has searches run here."""
    patch.setattr(connect, "prepare", lambda scaling, *_, **__: scaling)
    patch.setattr(connect, "leave", lambda: None)
    patch.setattr(search_runner, "search", search)
    patch.setattr(search_runner, "add_seeds", add_seeds)
    patch.setattr("ray.tune.report", lambda figures: None)
    patch.setattr(search_runner, "publish", published)


def begun(
    directory: Path, uri: str, *, experiment: Experiment = TINY, trials: int = 2, seeds: int = 1
) -> Sweep:
    """A new search."""
    plan = search_runner.Plan(SPACE, "test", trials, seeds, preset="tiny")
    return search_runner.new(plan, experiment, directory, uri, Scaling(gpus=0))


def database_in(storage: Path, tracking_uri: str) -> str:
    """A copy of MLflow's tables in a storage of its own: making them takes seconds."""
    storage.mkdir()
    shutil.copy(tracking_uri.removeprefix("sqlite:///"), storage / "mlflow.db")
    with closing(sqlite3.connect(storage / "mlflow.db")) as file, file:
        file.execute("UPDATE experiments SET name = 'of other tests' WHERE name = 'vamf'")
    return f"sqlite:///{storage / 'mlflow.db'}"
