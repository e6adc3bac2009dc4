"""Creates, runs and resumes a search, and publishes its results."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vamf import commands, tracking
from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import space as spaces
from vamf.cluster.search import study_database
from vamf.cluster.search.admission import Admission
from vamf.cluster.search.analysis.mlflow_view import show
from vamf.cluster.search.analysis.report import publish
from vamf.cluster.search.analysis.results import Results, gather
from vamf.cluster.search.budget import RESERVE, Budget, BudgetClock
from vamf.cluster.search.drivers import (
    Driver,
    found_at_work,
    require_reachable,
    turn,
    working,
)
from vamf.cluster.search.extension import Extension, require_same
from vamf.cluster.search.extra_seeds import LEVELS, admitted, extra_seeds, lacking
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.mlflow_outage import send_unsent
from vamf.cluster.search.saved_search import save, saved
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_copy import begun_copy, mirrored, push
from vamf.cluster.search.search_end import requeue, require_results, say_that_others_go_on
from vamf.cluster.search.space import Space
from vamf.cluster.search.storage_failure import as_storage_unusable
from vamf.cluster.search.study import retry_failed
from vamf.cluster.search.trials import load_trials
from vamf.cluster.search.tune import add_seeds, search
from vamf.cluster.train.run_lock import require_not_running
from vamf.cluster.train.run_params import origin, shared
from vamf.errors import StorageUnusable, StoreError
from vamf.experiment import Experiment
from vamf.files import claimed
from vamf.output import say
from vamf.run_layout import SPOOL, STUDY, SWEEP
from vamf.store import StoragePath, Store
from vamf.tracking import Tracker
from vamf.tracking.run import located
from vamf.tracking.run_end import closing
from vamf.training.advice import advise
from vamf.training.warm_start.start import resolved

TRIALS = 6
"""Trials of a search that is given neither their number nor a budget."""


@dataclass(frozen=True)
class Plan:
    """The choices of a new search."""

    space: Space
    """The search space."""
    name: str
    """Its name."""
    trials: int | None
    """The number of trials; None for as many as the budget allows, or 6 without one."""
    seeds: int | Literal["auto"]
    """Trainings for each point; "auto" adds some where verdicts are open, see `extra_seeds`."""
    halving: Halving = field(default_factory=Halving)
    """Which trials end early."""
    budget: Budget = field(default_factory=Budget)
    """When the search stops starting trials."""
    preset: str | None = None
    """Name of the preset that is varied; by default the space's own."""

    @property
    def count(self) -> int | None:
        """The number of trials, None for as many as the budget allows."""
        return TRIALS if self.trials is None and not self.budget.limited else self.trials

    @property
    def sizes(self) -> dict[str, int | str]:
        """The numbers of trials and seeds, for MLflow."""
        return {"trials": "by budget" if self.count is None else self.count, "seeds": self.seeds}


def new(
    plan: Plan,
    experiment: Experiment,
    location: StoragePath,
    uri: str,
    scaling: Scaling,
    *,
    numbered: bool = False,
    study: str = "",
) -> Sweep:
    """Connects to Ray and creates the folder and the MLflow run of a new search.

    If the folder exists, ``numbered`` chooses another name. ``study`` is the address of the study's
    database, by default a file in the folder. Raises ValueError if the name is taken, the space
    does not fit the experiment, weights are missing, or Ray, MLflow or the database refuses.
    """
    study_database.require_free(study, location.name)
    objectives, experiment = check(plan, experiment), experiment.located()
    experiment.prepare()
    experiment = resolved(experiment)
    scaling = connect.prepare(scaling, location.parent, uri, cluster=True)
    plan.budget.check(scaling)
    directory, store = _claimed(location, numbered)
    advise(experiment)
    preset, baseline = plan.preset or plan.space.PRESET, spaces.baseline(plan.space, experiment)
    parent = tracking.create(
        uri,
        name=directory.name if store is None else store.name,
        params={**plan.sizes, **shared(experiment, preset, baseline or {})},
        tags={
            "preset": preset,
            "space": plan.name,
            "objectives": ", ".join(objectives),
            "directory": str(store or directory),
            **origin(experiment),
        },
        spool=directory / SPOOL,
    )
    sweep = Sweep(
        directory=directory,
        space=plan.name,
        experiment=experiment,
        preset=preset,
        objectives=objectives,
        trials=plan.count,
        seeds=LEVELS[0] if plan.seeds == "auto" else plan.seeds,
        parent=parent,
        scaling=scaling,
        halving=plan.halving,
        budget=plan.budget,
        front_seeds="auto" if plan.seeds == "auto" else None,
        baseline=baseline,
        study=study,
        named=getattr(plan.space, "NAMED", {}),
        store=store,
        name="" if store is None else store.name,
    )
    save(sweep)
    _as_value_error(lambda: push(sweep))
    return sweep


def _claimed(location: StoragePath, numbered: bool) -> tuple[Path, Store | None]:
    """The folder of a new search, and the store of which it is a copy, if it is one."""
    if isinstance(location, Store):
        location.claim()
        return begun_copy(location).folder, location
    return claimed(location, numbered=numbered), None


def _as_value_error(action: Callable[[], None]) -> None:
    try:
        action()
    except StoreError as error:
        raise ValueError(f"the storage must answer; got {error}") from None


def check(plan: Plan, experiment: Experiment) -> tuple[str, ...]:
    """The objectives by their full names; ValueError for an invalid search."""
    first, trials = len(plan.space.POINTS), plan.count
    enough = trials is None or trials >= first
    if not enough or (plan.seeds != "auto" and plan.seeds < 1):
        raise ValueError(
            f"a search needs at least {first} trials, the space's own first points, "
            f"and 1 seed; got {trials} and {plan.seeds}"
        )
    plan.halving.check(experiment)
    spaces.check(plan.space, experiment)
    spaces.baseline(plan.space, experiment)
    return spaces.objectives(plan.space, experiment)


def resumed(
    location: StoragePath,
    uri: str,
    extension: Extension | None = None,
    study: str | None = None,
    *,
    join: bool = False,
) -> Sweep:
    """The search in a folder, to be resumed, and perhaps extended, on the present cluster.

    ``study`` is the address of its study's database with a password, if it has one. With ``join``
    others may work on the search.

    Raises ValueError if there is none, it is still running, Ray, MLflow or the study's database
    does not answer, the study is another search's, or the extension is not one.
    """
    store = location if isinstance(location, Store) else None
    directory = _pulled(location, join) if isinstance(location, Store) else location.resolve()
    if not (directory / SWEEP).exists():
        raise ValueError(f"no search in {store or directory}: {SWEEP} is missing")
    running = found_at_work(directory, join)
    tracking.check(uri := located(uri))
    with turn(directory):  # another driver may be creating the study
        study_database.require_readable(directory / STUDY)
    sweep = saved(directory, uri, store)
    if study:
        sweep = replace(sweep, study=study_database.address_again(study, sweep.study))
    with turn(directory):
        study_database.require_own(sweep)
    tracking.require(sweep.parent)
    before, sweep = sweep, (extension or Extension()).of(sweep)
    if running:
        require_same(before, sweep)
        require_reachable(sweep, running)
    scaling = connect.prepare(sweep.scaling, sweep.location.parent, uri, cluster=True)
    return replace(sweep, scaling=scaling)


def _pulled(store: Store, join: bool) -> Path:
    """A search's working copy, downloaded anew; ValueError if it is in use here."""
    if join:
        raise ValueError(f"several commands can work on one search only in a folder; got {store}")
    require_not_running(store)
    copy = begun_copy(store)
    _as_value_error(copy.pull)
    return copy.folder


@as_storage_unusable()
def run(
    space: Space, sweep: Sweep, *, failed: bool = False, join: bool = False
) -> tuple[Results, dict[str, Path]]:
    """Runs the remaining trials of a search, and writes its results to files and to MLflow.

    Trials that were running when an earlier attempt ended are resumed from their checkpoints. With
    ``failed`` the points of failed trials are tried again. With ``join`` others may work on the
    search; whoever ends last writes the results, and for the others there are no files.

    Raises:
        NothingFound: no trial succeeded, or none of this attempt.
        RunFailed: some trials could not start, for example as MLflow did not answer.
        StillRunning: another process works on the search.
        StorageUnusable: nothing can be written any more.
    """
    with working(sweep, join=join) as driver, mirrored(sweep):
        tracking.rejoin(sweep.parent)
        if not driver.joined:
            save(sweep)  # with the present folder, if it was moved
            Tracker(sweep.parent).tags({"directory": str(sweep.location)})
            show(sweep)  # so that the trials can be compared while they run
        with closing(sweep.parent, ends=driver.gone_as_last):
            return _search_and_publish(space, sweep, driver, failed)


def _search_and_publish(
    space: Space, sweep: Sweep, driver: Driver, failed: bool
) -> tuple[Results, dict[str, Path]]:
    with turn(sweep.directory):
        requeue(sweep, driver.others())
        if failed:
            retry_failed(sweep)
    send_unsent(sweep)
    push(sweep)  # before a trial's process reads its files
    before = {trial.number for trial in load_trials(sweep.directory)}
    try:
        left = _search(space, sweep, driver)
    except KeyboardInterrupt:
        connect.leave()  # ends the trials' processes
        _give_up(sweep, driver)
        raise
    except StorageUnusable:
        connect.leave()
        with suppress(Exception):  # done again when the search is resumed
            _give_up(sweep, driver)
        raise
    found = gather(sweep)
    if not driver.gone_as_last():
        say_that_others_go_on(sweep, left)
        return found, {}
    files = publish(sweep, found)
    if unsent := send_unsent(sweep):
        say(
            f"Not yet sent to MLflow: events of trials in {sweep.location} ({unsent}); "
            f"{commands.shown('resend', sweep.location)} sends them",
            error=True,
        )
    require_results(sweep, found, before, left, files["table"])
    return found, files


def _search(space: Space, sweep: Sweep, driver: Driver) -> list[int]:
    """Runs the remaining trials; the last driver then trains those that decide with more seeds.

    Returns the numbers of the trials that have no result.
    """
    kept = RESERVE if sweep.front_seeds is not None else 0.0
    clock = BudgetClock(sweep.budget, seeds=sweep.seeds, reserve=kept)
    left: list[int] | None = None
    while left is None:
        search(space, sweep, clock, driver)
        left = _ended(sweep, clock, driver)
    if driver.gone_as_last():
        _add_seeds(space, sweep, clock)
    return left


def _ended(sweep: Sweep, clock: BudgetClock, driver: Driver) -> list[int] | None:
    """Ends the work of a driver that finds no more trials; returns those without a result.

    None if there are trials to start again: those that a driver left that died, or was interrupted.
    """
    with turn(sweep.directory):
        others = driver.others()
        abandoned = requeue(sweep, {driver.name, *others})
        if sweep.trials is not None and Admission.of(sweep, clock).refusal() is None:
            return None
        own = requeue(sweep, others)
        driver.go()
    return sorted([*abandoned, *own])


def _add_seeds(space: Space, sweep: Sweep, clock: BudgetClock) -> None:
    """Trains the points that decide with more seeds, as far as the budget has room.

    A trial of which a seed has no result, and that is complete, gets no more of them now.
    """
    wanted, lost = dict[int, int](), set[int]()
    while True:
        trials = load_trials(sweep.directory)
        left = {n: seeds for n, seeds in lacking(wanted, trials).items() if n not in lost}
        wanted = left or extra_seeds(sweep, trials, lost)
        if not wanted:
            return
        if not (now := admitted(wanted, trials, clock)):
            say(f"the budget has no room for more seeds: {clock.seed_exhausted(trials)}")
            return
        add_seeds(space, sweep, clock, now)
        lost |= lacking(now, load_trials(sweep.directory)).keys()


def _give_up(sweep: Sweep, driver: Driver) -> None:
    """Queues the trials of a driver that ends early, for others or a later attempt."""
    with turn(sweep.directory):
        requeue(sweep, driver.others())
        driver.go()
