"""A search from beginning to end: its folder, its MLflow run, its trials, and what it found."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vamf import tracking, values
from vamf.cluster import connect
from vamf.cluster import space as spaces
from vamf.cluster.ended import postponed
from vamf.cluster.failures import RunFailed, StorageUnusable
from vamf.cluster.halving import Halving
from vamf.cluster.holding import held, require_ended
from vamf.cluster.launch import RUN, close_orphan, closing
from vamf.cluster.outage import catch_up
from vamf.cluster.report import publish
from vamf.cluster.results import Results, gather
from vamf.cluster.scaling import Scaling
from vamf.cluster.space import Space
from vamf.cluster.storage import one_line
from vamf.cluster.study import put_back, require_study, retry_failed
from vamf.cluster.sweep import SWEEP, Sweep, storage
from vamf.cluster.trials import load_trials, trial_folder
from vamf.cluster.tune import search
from vamf.experiment import Experiment
from vamf.files import claimed, write_whole
from vamf.output import say
from vamf.tracking import Run, Tracker
from vamf.tracking.run import located


class NothingFound(RuntimeError):
    """Not one trial of a search succeeded."""


@dataclass(frozen=True)
class Plan:
    """What to search, and how long."""

    space: Space
    """The search space."""
    name: str
    """Its name."""
    trials: int
    """Points to try."""
    seeds: int
    """Trainings for each point."""
    halving: Halving = field(default_factory=Halving)
    """Which trials end early."""
    preset: str | None = None
    """Name of the preset that is varied; by default the space's own."""


def new(
    plan: Plan,
    experiment: Experiment,
    directory: Path,
    uri: str,
    scaling: Scaling,
    *,
    numbered: bool = False,
) -> Sweep:
    """Makes the folder and the MLflow run of a new search, once Ray is there.

    A name that is taken is ``numbered``, or else refused by a ValueError.

    Raises ValueError if the space does not fit the experiment, weights are missing, or Ray or
    MLflow refuses.
    """
    objectives, experiment = check(plan, experiment), experiment.located()
    experiment.prepare()
    scaling = connect.prepare(scaling, directory.parent, uri, cluster=True)
    directory = claimed(directory, numbered=numbered)
    preset = plan.preset or plan.space.PRESET
    parent = tracking.create(
        uri,
        name=directory.name,
        params={"trials": plan.trials, "seeds": plan.seeds, **experiment.flatten()},
        tags={
            "preset": preset,
            "space": plan.name,
            "objectives": ", ".join(objectives),
            "directory": str(directory),
        },
        spool=directory / "spool",
    )
    sweep = Sweep(
        directory=directory,
        space=plan.name,
        experiment=experiment,
        preset=preset,
        objectives=objectives,
        trials=plan.trials,
        seeds=plan.seeds,
        parent=parent,
        scaling=scaling,
        halving=plan.halving,
    )
    _save(sweep)
    return sweep


def check(plan: Plan, experiment: Experiment) -> tuple[str, ...]:
    """The objectives by their full names; ValueError for what cannot be searched."""
    first = len(plan.space.POINTS)
    if plan.trials < first or plan.seeds < 1:
        raise ValueError(
            f"a search needs at least {first} trials, the space's own first points, "
            f"and 1 seed; got {plan.trials} and {plan.seeds}"
        )
    plan.halving.check(experiment)
    spaces.check(plan.space, experiment)
    return spaces.objectives(plan.space, experiment)


def resumed(directory: Path, uri: str) -> Sweep:
    """The search in a folder, to go on with on the cluster that is there now.

    Raises ValueError if there is none, it is still running, or Ray or MLflow does not answer.
    """
    directory = directory.resolve()
    if not (directory / SWEEP).exists():
        raise ValueError(f"no search in {directory}: {SWEEP} is missing")
    require_ended(directory)
    tracking.check(uri := located(uri))
    require_study(storage(directory))
    data: dict[str, Any] = json.loads((directory / SWEEP).read_text())
    parent = Run(**data["parent"] | {"uri": uri})
    tracking.require(parent)
    experiment = Experiment.from_dict(data["experiment"]).located()
    fields: Mapping[str, Any] = data | {
        "directory": directory,
        "experiment": experiment.moved(parent.directory, directory),
        "objectives": tuple(data["objectives"]),
        "parent": parent.kept_in(directory),
        "scaling": connect.prepare(Scaling(**data["scaling"]), directory.parent, uri, cluster=True),
        "halving": values.from_dict(Halving, data.get("halving", {})),  # older searches lack it
    }
    return Sweep(**fields)


def _save(sweep: Sweep) -> None:
    data = asdict(sweep) | {
        "directory": None,
        "experiment": sweep.experiment.to_dict(),
        "parent": asdict(replace(sweep.parent, uri="")),  # it may hold credentials
    }
    write_whole(sweep.directory / SWEEP, json.dumps(data, indent=2) + "\n")


@one_line()
def run(space: Space, sweep: Sweep, *, failed: bool = False) -> tuple[Results, dict[str, Path]]:
    """Runs what is left of a search, and writes what it found, to files and to MLflow.

    Trials that were in flight when an earlier attempt ended go on from their checkpoints. With
    ``failed`` the points of those that failed are tried anew.

    Raises:
        NothingFound: no trial succeeded, or none of those that were tried now.
        RunFailed: some trials could not begin, for reasons that are not their own.
        StillRunning: another process has the search.
        StorageUnusable: nothing can be written any more.
    """
    with held(sweep.directory):
        tracking.rejoin(sweep.parent)
        _save(sweep)  # it may have been moved
        Tracker(sweep.parent).tags({"directory": str(sweep.directory)})
        with closing(sweep.parent):
            return _searched(space, sweep, failed)


def _searched(space: Space, sweep: Sweep, failed: bool) -> tuple[Results, dict[str, Path]]:
    _put_back(sweep)
    catch_up(sweep)
    if failed:
        retry_failed(sweep)
    before = {trial.number for trial in load_trials(sweep.directory)}
    try:
        search(space, sweep)
    except KeyboardInterrupt:
        connect.leave()  # ends the trials' processes
        _put_back(sweep)
        raise
    except StorageUnusable:
        connect.leave()
        with suppress(Exception):  # the rest is done when the search goes on
            _put_back(sweep)
        raise
    left = _put_back(sweep)
    found = gather(sweep)
    files = publish(sweep, found)
    if unsent := catch_up(sweep):
        say(
            f"Not yet sent to MLflow: events of trials in {sweep.directory} ({unsent}); "
            f"python -m jobs.resend {sweep.directory} sends them",
            error=True,
        )
    _require_results(sweep, found, before, left, files["table"])
    return found, files


def _require_results(
    sweep: Sweep, found: Results, before: set[int], left: list[int], table: Path
) -> None:
    """Raises what a search ends with that has trials without a result, or only failed ones."""
    if left:
        reasons = (postponed(trial_folder(sweep.directory, number)) for number in left)
        why = next(filter(None, reasons), "its process ended")
        raise RunFailed(
            f"{len(left)} of {sweep.trials} trials have no result yet: {why}; "
            f"those that ended are in {table}; to go on: {sweep.again}"
        )
    tried = [trial for trial in found.trials if trial.number not in before]
    if not found.complete or (tried and all(trial.error for trial in tried)):
        raise NothingFound(
            f"no trial of {sweep.name}{' that was tried now' * bool(before)} succeeded; see {table}"
        )


def _put_back(sweep: Sweep) -> list[int]:
    """Has trials without a result gone on with, later; until then their runs have been killed."""
    left = put_back(sweep)
    for number in left:
        for marker in trial_folder(sweep.directory, number).glob(f"*/{RUN}"):
            close_orphan(marker, sweep.parent.uri)
    return left
