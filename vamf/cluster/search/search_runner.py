"""Creates, runs and resumes a search, and publishes its results."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vamf import commands, serialization, tracking
from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import space as spaces
from vamf.cluster.search import study_database
from vamf.cluster.search.analysis.mlflow_view import show
from vamf.cluster.search.analysis.report import publish
from vamf.cluster.search.analysis.results import Results, gather
from vamf.cluster.search.budget import Budget, BudgetClock
from vamf.cluster.search.extra_seeds import LEVELS, extra_seeds
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.mlflow_outage import send_unsent
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.space import Space
from vamf.cluster.search.storage_failure import as_storage_unusable
from vamf.cluster.search.study import requeue_unfinished, retry_failed
from vamf.cluster.search.trial_end import BUDGET_ENDED, postponed
from vamf.cluster.search.trials import load_trials, trial_folder
from vamf.cluster.search.tune import add_seeds, search
from vamf.cluster.train.run_lock import exclusive, require_not_running
from vamf.cluster.train.run_params import origin, shared
from vamf.cluster.train.tracked_run import close_abandoned
from vamf.errors import NothingFound, RunFailed, StorageUnusable
from vamf.experiment import Experiment
from vamf.files import claimed, write_whole
from vamf.output import say
from vamf.run_layout import RUN, SPOOL, STUDY, SWEEP
from vamf.tracking import Run, Tracker
from vamf.tracking.run import located
from vamf.tracking.run_end import closing
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


def new(
    plan: Plan,
    experiment: Experiment,
    directory: Path,
    uri: str,
    scaling: Scaling,
    *,
    numbered: bool = False,
    study: str = "",
) -> Sweep:
    """Connects to Ray and creates the folder and the MLflow run of a new search.

    If the folder exists, ``numbered`` chooses another name; otherwise ValueError is raised.
    ``study`` is the address of the study's database, by default a file in the folder.

    Raises ValueError if the space does not fit the experiment, weights are missing, or Ray, MLflow
    or the database refuses.
    """
    study_database.require_free(study, directory.name)
    objectives, experiment = check(plan, experiment), experiment.located()
    experiment.prepare()
    experiment = resolved(experiment)
    scaling = connect.prepare(scaling, directory.parent, uri, cluster=True)
    plan.budget.check(scaling)
    seeds = LEVELS[0] if plan.seeds == "auto" else plan.seeds
    directory = claimed(directory, numbered=numbered)
    preset, baseline = plan.preset or plan.space.PRESET, spaces.baseline(plan.space, experiment)
    parent = tracking.create(
        uri,
        name=directory.name,
        params={
            "trials": "by budget" if plan.count is None else plan.count,
            "seeds": plan.seeds,
            **shared(experiment, preset, baseline or {}),
        },
        tags={
            "preset": preset,
            "space": plan.name,
            "objectives": ", ".join(objectives),
            "directory": str(directory),
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
        seeds=seeds,
        parent=parent,
        scaling=scaling,
        halving=plan.halving,
        budget=plan.budget,
        front_seeds="auto" if plan.seeds == "auto" else None,
        baseline=baseline,
        study=study,
    )
    _save(sweep)
    return sweep


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


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What changes when a search is resumed; None for what stays."""

    trials: int | None = None
    """The number of trials, those before included."""
    seeds: int | Literal["auto"] | None = None
    """Trainings for the baseline and for points on and next to the front: a number, or "auto" for
    more where the verdict is open."""
    hours: float | None = None
    """Hours that this command may take."""
    gpu_hours: float | None = None
    """GPU-hours of all trials, those before included."""

    def of(self, sweep: Sweep) -> Sweep:
        """The search with these changes.

        Raises ValueError for fewer trials or seeds than it has, and for a budget without room for
        another trial.
        """
        trials = load_trials(sweep.directory)
        if self.trials is not None and self.trials < len(trials):
            raise ValueError(f"the search has {len(trials)} trials already; got {self.trials}")
        if isinstance(self.seeds, int) and self.seeds < sweep.seeds:
            raise ValueError(f"each point has {sweep.seeds} seeds already; got {self.seeds}")
        limits = {"hours": self.hours, "gpu_hours": self.gpu_hours}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        budget = replace(sweep.budget, **given)
        budget.check(sweep.scaling)
        budget.require_room(trials)
        return replace(
            sweep,
            trials=sweep.trials if self.trials is None else self.trials,
            front_seeds=sweep.front_seeds if self.seeds is None else self.seeds,
            budget=budget,
        )


def resumed(
    directory: Path, uri: str, extension: Extension | None = None, study: str | None = None
) -> Sweep:
    """The search in a folder, to be resumed, and perhaps extended, on the present cluster.

    ``study`` is the address of its study's database with a password, if it has one.

    Raises ValueError if there is none, it is still running, Ray, MLflow or the study's database
    does not answer, the study is another search's, or the extension is not one.
    """
    directory = directory.resolve()
    if not (directory / SWEEP).exists():
        raise ValueError(f"no search in {directory}: {SWEEP} is missing")
    require_not_running(directory)
    tracking.check(uri := located(uri))
    study_database.require_readable(directory / STUDY)
    sweep = saved(directory, uri)
    if study:
        sweep = replace(sweep, study=study_database.address_again(study, sweep.study))
    study_database.require_own(sweep)
    tracking.require(sweep.parent)
    sweep = (extension or Extension()).of(sweep)
    scaling = connect.prepare(sweep.scaling, directory.parent, uri, cluster=True)
    return replace(sweep, scaling=scaling)


def saved(directory: Path, uri: str = "") -> Sweep:
    """The search in a folder, as it was saved, to be read; ValueError if there is none."""
    if not (directory / SWEEP).exists():
        raise ValueError(f"no search in {directory}: {SWEEP} is missing")
    data: dict[str, Any] = json.loads((directory / SWEEP).read_text())
    parent = Run(**data["parent"] | {"uri": uri})
    experiment = Experiment.from_dict(data["experiment"]).located()
    halving, budget = data.get("halving", {}), data.get("budget", {})  # older searches lack them
    fields: Mapping[str, Any] = data | {
        "directory": directory,
        "experiment": experiment.moved(parent.directory, directory),
        "objectives": tuple(data["objectives"]),
        "parent": parent.kept_in(directory),
        "scaling": Scaling(**data["scaling"]),
        "halving": serialization.from_dict(Halving, halving),
        "budget": serialization.from_dict(Budget, budget),
        "study": study_database.address_again(None, data.get("study", "")),
    }
    return Sweep(**fields)


def _save(sweep: Sweep) -> None:
    data = asdict(sweep) | {
        "directory": None,
        "experiment": sweep.experiment.to_dict(),
        "parent": asdict(replace(sweep.parent, uri="")),  # it may hold credentials
        "study": study_database.without_password(sweep.study),
    }
    write_whole(sweep.directory / SWEEP, json.dumps(data, indent=2) + "\n")


@as_storage_unusable()
def run(space: Space, sweep: Sweep, *, failed: bool = False) -> tuple[Results, dict[str, Path]]:
    """Runs the remaining trials of a search, and writes its results to files and to MLflow.

    Trials that were running when an earlier attempt ended are resumed from their checkpoints. With
    ``failed`` the points of failed trials are tried again.

    Raises:
        NothingFound: no trial succeeded, or none of this attempt.
        RunFailed: some trials could not start, for example as MLflow did not answer.
        StillRunning: another process works on the search.
        StorageUnusable: nothing can be written any more.
    """
    with exclusive(sweep.directory):
        tracking.rejoin(sweep.parent)
        _save(sweep)  # with the present folder, if it was moved
        Tracker(sweep.parent).tags({"directory": str(sweep.directory)})
        show(sweep)  # so that the trials can be compared while they run
        with closing(sweep.parent):
            return _search_and_publish(space, sweep, failed)


def _search_and_publish(
    space: Space, sweep: Sweep, failed: bool
) -> tuple[Results, dict[str, Path]]:
    _requeue_unfinished(sweep)
    send_unsent(sweep)
    if failed:
        retry_failed(sweep)
    before = {trial.number for trial in load_trials(sweep.directory)}
    try:
        _search(space, sweep)
    except KeyboardInterrupt:
        connect.leave()  # ends the trials' processes
        _requeue_unfinished(sweep)
        raise
    except StorageUnusable:
        connect.leave()
        with suppress(Exception):  # done again when the search is resumed
            _requeue_unfinished(sweep)
        raise
    left = _requeue_unfinished(sweep)
    found = gather(sweep)
    files = publish(sweep, found)
    if unsent := send_unsent(sweep):
        say(
            f"Not yet sent to MLflow: events of trials in {sweep.directory} ({unsent}); "
            f"{commands.shown('resend', sweep.directory)} sends them",
            error=True,
        )
    _require_results(sweep, found, before, left, files["table"])
    return found, files


def _search(space: Space, sweep: Sweep) -> None:
    """Runs the remaining trials, and then those that decide the search with more seeds."""
    clock = BudgetClock(sweep.budget)
    search(space, sweep, clock)
    trials = load_trials(sweep.directory)
    while wanted := extra_seeds(sweep, trials):
        if (why := clock.exhausted(trials)) is not None:
            say(f"the budget has no room for more seeds: {why}")
            return
        add_seeds(space, sweep, clock, wanted)
        before, trials = trials, load_trials(sweep.directory)
        if trials == before:  # none could start
            return


def _require_results(
    sweep: Sweep, found: Results, before: set[int], left: list[int], table: Path
) -> None:
    """Raises RunFailed if trials have no result, NothingFound if all failed."""
    reasons = {number: postponed(trial_folder(sweep.directory, number)) for number in left}
    lost = [number for number, reason in reasons.items() if reason != BUDGET_ENDED]
    if lost:
        why = next((reason for number in lost if (reason := reasons[number])), "its process ended")
        raise RunFailed(
            f"{len(lost)} of {len(left) + len(found.trials)} trials have no result yet: {why}; "
            f"those that ended are in {table}; to resume: {sweep.resume_command}"
        )
    tried = [trial for trial in found.trials if trial.number not in before]
    if not found.complete or (tried and all(trial.error for trial in tried)):
        raise NothingFound(
            f"no trial of {sweep.name}{' that was tried now' * bool(before)} succeeded; see {table}"
        )


def _requeue_unfinished(sweep: Sweep) -> list[int]:
    """Requeues trials without a result, and ends their MLflow runs until they are resumed."""
    left = requeue_unfinished(sweep)
    for number in left:
        for run_file in trial_folder(sweep.directory, number).glob(f"*/{RUN}"):
            close_abandoned(run_file, sweep.parent.uri)
    return left
