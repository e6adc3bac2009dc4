"""Searches in this process, one trial after the other: Optuna and the trials are real, Ray is not
there."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
from vamf.cluster.search.admission import Admission
from vamf.cluster.search.analysis.results import Results
from vamf.cluster.search.budget import Budget, BudgetClock
from vamf.cluster.search.drivers import Driver, turn, working
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_copy import pull_trial, push, trial_copy
from vamf.cluster.search.space import Space, points
from vamf.cluster.search.study import DRIVER, record_result, sampler
from vamf.cluster.search.study_database import database
from vamf.cluster.search.trial_runner import run_trial
from vamf.cluster.search.trials import Trial, load_trials, trial_folder
from vamf.experiment import Experiment
from vamf.metrics.distances import Measurement
from vamf.store import StoragePath


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


def search(space: Space, sweep: Sweep, clock: BudgetClock, driver: Driver) -> None:
    """What ``tune.search`` does."""
    admission = Admission.of(sweep, clock)
    with turn(sweep.directory):
        study = optuna.create_study(
            study_name=sweep.name,
            storage=database(sweep),
            directions=["minimize"] * 2,
            sampler=sampler(space, sweep, driver.name if driver.joined else ""),
            load_if_exists=True,
        )
        for point in points(space, sweep.experiment) if not study.trials else ():
            study.enqueue_trial(point)
    while True:
        with turn(sweep.directory):
            if admission.refusal() is not None:
                return
            trial = study.ask()
            trial.set_user_attr(DRIVER, driver.name)
            settings = dict(space.space(trial))
        push(sweep)
        with trial_copy(sweep, trial.number) as here:
            run_trial(here, trial.number, settings)
        pull_trial(sweep, trial.number)
        record_result(sweep, trial.number)
        push(sweep)


def raced(sweep: Sweep, drivers: int) -> tuple[list[int], list[bool]]:
    """Several drivers, each a thread, that start what trials they can, which take 20 ms.

    Returns the numbers of the trials, and for each driver whether it was the last.
    """
    started: list[int] = []

    def drive(_: int) -> bool:
        admission = Admission.of(sweep, BudgetClock(Budget()))
        with working(sweep, join=True) as driver:
            together.wait()
            while (number := start(admission, driver)) is not None:
                started.append(number)
                time.sleep(0.02)
                measured = {name: Measurement(1.0, 0.1) for name in sweep.objectives}
                Trial(number=number, settings={}, label="", metrics=measured).save(
                    trial_folder(sweep.directory, number)
                )
                record_result(sweep, number)
            return driver.gone_as_last()

    def start(admission: Admission, driver: Driver) -> int | None:
        with turn(sweep.directory):
            if admission.refusal() is not None:
                return None
            study = optuna.create_study(
                study_name=sweep.name,
                storage=database(sweep),
                directions=["minimize"] * 2,
                load_if_exists=True,
            )
            trial = study.ask()
            trial.set_user_attr(DRIVER, driver.name)
            return trial.number

    together = threading.Barrier(drivers)
    with ThreadPoolExecutor(drivers) as threads:
        return started, list(threads.map(drive, range(drivers)))


def add_seeds(space: Space, sweep: Sweep, clock: BudgetClock, wanted: Mapping[int, int]) -> None:
    """What ``tune.add_seeds`` does."""
    for trial in load_trials(sweep.directory):
        if trial.number in wanted:
            with trial_copy(sweep, trial.number) as here:
                run_trial(here, trial.number, trial.settings, wanted[trial.number])
            pull_trial(sweep, trial.number)


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
    location: StoragePath,
    uri: str,
    *,
    experiment: Experiment = TINY,
    trials: int = 2,
    seeds: int = 1,
    halving: Halving | None = None,
) -> Sweep:
    """A new search."""
    ends = halving or Halving()
    plan = search_runner.Plan(SPACE, "test", trials, seeds, ends, preset="tiny")
    return search_runner.new(plan, experiment, location, uri, Scaling(gpus=0))


def database_in(storage: Path, tracking_uri: str) -> str:
    """A copy of MLflow's tables in a storage of its own: making them takes seconds."""
    storage.mkdir()
    shutil.copy(tracking_uri.removeprefix("sqlite:///"), storage / "mlflow.db")
    with closing(sqlite3.connect(storage / "mlflow.db")) as file, file:
        file.execute("UPDATE experiments SET name = 'of other tests' WHERE name = 'vamf'")
    return f"sqlite:///{storage / 'mlflow.db'}"
