"""A search from beginning to end: its folder, its MLflow run, its trials, and what it found."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vamf import tracking
from vamf.cluster import space as spaces
from vamf.cluster.launch import RUN, close_orphan, closing
from vamf.cluster.results import Results, gather, publish
from vamf.cluster.space import Space
from vamf.cluster.train import Scaling
from vamf.cluster.trials import trial_folder
from vamf.cluster.tune import Sweep, abandon, search
from vamf.experiment import Experiment
from vamf.tracking import Run

SWEEP = "sweep.json"


class NothingFound(RuntimeError):
    """Not one trial of a search succeeded."""


def new(
    space: Space,
    name: str,
    experiment: Experiment,
    *,
    directory: Path,
    uri: str,
    trials: int,
    seeds: int,
    scaling: Scaling,
) -> Sweep:
    """Makes the folder and the MLflow run of a new search.

    Raises ValueError if the space does not fit the experiment, or MLflow refuses.
    """
    objectives = check(space, experiment, trials, seeds)
    directory.mkdir(parents=True)
    parent = tracking.create(
        uri,
        name=directory.name,
        params={"trials": trials, "seeds": seeds, **experiment.flatten()},
        tags={
            "preset": space.PRESET,
            "space": name,
            "objectives": ", ".join(objectives),
            "git.commit": tracking.git_commit() or "unknown",
            "directory": str(directory),
        },
        spool=directory / "spool",
    )
    sweep = Sweep(
        directory=directory,
        space=name,
        experiment=experiment,
        preset=space.PRESET,
        objectives=objectives,
        trials=trials,
        seeds=seeds,
        parent=parent,
        scaling=scaling,
    )
    _save(sweep)
    return sweep


def check(space: Space, experiment: Experiment, trials: int, seeds: int) -> tuple[str, ...]:
    """The objectives by their full names; ValueError for what cannot be searched."""
    if trials < len(space.POINTS) or seeds < 1:
        raise ValueError(
            f"a search needs at least {len(space.POINTS)} trials, the space's own first points, "
            f"and 1 seed; got {trials} and {seeds}"
        )
    spaces.check(space, experiment)
    return spaces.objectives(space, experiment)


def resumed(directory: Path, uri: str) -> Sweep:
    """The search in a folder, to go on with.

    Raises ValueError if there is none, or MLflow does not answer.
    """
    directory = directory.resolve()
    if not (directory / SWEEP).exists():
        raise ValueError(f"no search in {directory}: {SWEEP} is missing")
    tracking.check(uri)
    data: dict[str, Any] = json.loads((directory / SWEEP).read_text())
    fields: Mapping[str, Any] = data | {
        "directory": directory,
        "experiment": Experiment.from_dict(data["experiment"]),
        "objectives": tuple(data["objectives"]),
        "parent": Run(**data["parent"] | {"uri": uri}),
        "scaling": Scaling(**data["scaling"]),
    }
    return Sweep(**fields)


def _save(sweep: Sweep) -> None:
    data = asdict(sweep) | {
        "directory": None,
        "experiment": sweep.experiment.to_dict(),
        "parent": asdict(replace(sweep.parent, uri="")),  # it may hold credentials
    }
    (sweep.directory / SWEEP).write_text(json.dumps(data, indent=2) + "\n")


def run(space: Space, sweep: Sweep) -> tuple[Results, dict[str, Path]]:
    """Runs what is left of a search, and writes what it found, to files and to MLflow.

    Trials that were in flight when an earlier attempt died are repeated. Raises NothingFound if no
    trial succeeded.
    """
    tracking.rejoin(sweep.parent)
    with closing(sweep.parent):
        for number in abandon(sweep):
            for marker in trial_folder(sweep.directory, number).glob(f"*/{RUN}"):
                close_orphan(marker, sweep.parent.uri)
        search(space, sweep)
        found = gather(sweep)
        files = publish(sweep, found)
        if not found.complete:
            raise NothingFound(f"no trial of {sweep.name} succeeded; see {files['table']}")
    return found, files
