"""One tracked run from beginning to end: its folder, its MLflow run, and an honest status."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from errno import ENOENT
from pathlib import Path
from typing import Any

from vamf import files, tracking, values
from vamf.cluster import signals
from vamf.cluster.failures import RunFailed, full, is_full
from vamf.cluster.holding import held, require_ended
from vamf.cluster.mirror import Mirror
from vamf.cluster.outage import telling
from vamf.cluster.scaling import Scaling
from vamf.cluster.train import fit
from vamf.cluster.worker import EXPERIMENT
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.store import Place, Store, StoreError
from vamf.tracking import Run, Tracker
from vamf.tracking.run import located
from vamf.tracking.tracker import Status
from vamf.training.evaluation import protocol
from vamf.training.fetching import CHECKPOINTS, working_copy
from vamf.training.loop import Summary
from vamf.training.restoring import checkpoints, newest

RUN, SCALING = "run.json", "scaling.json"

HANDOVER_S = 120.0
"""Seconds for which a trial waits for the process that had it before."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a run is called and where it is kept."""

    directory: Path
    """The run's folder, or its working copy of a place in a store."""
    uri: str = field(repr=False)
    """MLflow's tracking URI; it may hold credentials."""
    name: str
    """The run's name in MLflow."""
    preset: str
    """Name of the preset that the experiment came from."""
    parent: Run | None = None
    """The sweep that the run belongs to."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further MLflow tags."""
    store: Store | None = None
    """The place in an object store that holds the run, if one does."""

    numbered: bool | None = None
    """Of a new run, whether it takes another name if its own is taken; None joins what is there."""

    @property
    def place(self) -> Place:
        """What users call the run by."""
        return self.directory if self.store is None else self.store


def new(place: Place, uri: str, preset: str) -> Launch:
    """A run by itself, named after its folder."""
    uri = located(uri)
    if not isinstance(place, Store):
        return Launch(directory=place, uri=uri, name=place.name, preset=preset)
    directory = working_copy(place, "driver")
    shutil.rmtree(directory, ignore_errors=True)  # of another attempt: the store's word counts
    return Launch(directory=directory, uri=uri, name=place.name, preset=preset, store=place)


def claimed(start: Launch) -> Launch:
    """The same run; of a new one, with a place that this process alone has made.

    Raises ValueError for a name that is taken and not ``numbered``, or is in a store.
    """
    if start.numbered is None:
        return start
    if start.store is not None:
        start.store.claim()
        return replace(start, numbered=None)
    directory = files.claimed(start.directory, numbered=start.numbered)
    return replace(start, directory=directory, name=directory.name, numbered=None)


def scaling_of(place: Place) -> Scaling:
    """What the run's last attempt was given; the default of a run that does not say, or of none.

    Raises ValueError if that cannot be read.
    """
    try:
        text = place.read(SCALING) if isinstance(place, Store) else (place / SCALING).read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # earlier versions saved none
        return Scaling()
    except OSError as error:
        raise ValueError(f"the run could not be read: {error}") from None
    try:
        return values.from_dict(Scaling, json.loads(text))
    except ValueError as error:
        raise ValueError(f"the run's {SCALING} must hold a scaling; got {error}") from None


def resumed(place: Place, uri: str) -> tuple[Experiment, Launch]:
    """The run in a folder, ready to go on.

    Raises ValueError if there is none, it is still running, no checkpoint of it is intact, MLflow
    has no such run, or MLflow or a store is away.
    """
    place = place if isinstance(place, Store) else place.resolve()
    if isinstance(place, Store) or (place / RUN).exists():
        require_ended(place)  # before its working copy is made anew
    start = new(place, uri, preset="")
    directory = start.directory
    if start.store is not None:
        try:
            Mirror(start.store, directory).pull()
        except OSError as error:
            raise ValueError(f"the run could not be read: {error}") from None
    if not (directory / RUN).exists():
        raise ValueError(f"no run in {start.place}: {RUN} is missing")
    tracking.check(uri)
    tracking.require(Run.load(directory / RUN, uri))
    experiment = Experiment.load(directory / EXPERIMENT).located()
    if start.store is None:
        experiment = experiment.moved(before(directory / RUN), directory)
    newest(checkpoints(experiment, directory), experiment)  # told here, not by a worker
    return experiment, start


def before(marker: Path) -> Path:
    """The folder in which the run of this ``run.json`` last was: another one if it was moved."""
    return Run(**json.loads(marker.read_text())).directory


def close_orphan(
    marker: Path, uri: str, status: Status = "KILLED", why: str = "interrupted"
) -> None:
    """Ends the run whose ``run.json`` this is: nobody will go on with it."""
    Tracker(Run.load(marker, uri)).close(status, why)


def create(experiment: Experiment, start: Launch) -> Run:
    """Makes the folder and the MLflow run of a new run, or rejoins those that are there.

    A trial waits for an MLflow that does not answer. Raises ValueError if the folder holds another
    experiment, NotCreated if MLflow does not answer or refuses, FileNotFoundError on a node that
    does not see the folder of the sweep.
    """
    _require_seen(start)
    saved, marker = start.directory / EXPERIMENT, start.directory / RUN
    if marker.exists():
        if experiment.differences(Experiment.load(saved)):
            raise ValueError(f"{start.directory} holds another experiment")
        run = Run.load(marker, start.uri)
        tracking.rejoin(run)
        if start.store is None and before(marker) != run.directory:
            experiment.save(saved)
            run.save(marker)
            Tracker(run).tags({"directory": str(start.directory)})
        return run
    start.directory.mkdir(parents=True, exist_ok=True)
    experiment.save(saved)
    with telling(start.directory) as tell:
        run = tracking.create(
            start.uri,
            name=start.name,
            params=experiment.flatten(),
            tags=_tags(experiment, start),
            spool=start.directory / "spool",
            parent=start.parent,
            key=_key(start),
            wait=tell if start.parent is not None else None,
        )
    run.save(marker)
    Tracker(run).artifact(saved)
    return run


def _require_seen(start: Launch) -> None:
    if start.parent is not None and not (sweep := Path(start.parent.spool).parent).is_dir():
        raise FileNotFoundError(ENOENT, "this node does not see the sweep's folder", str(sweep))


def _key(start: Launch) -> str | None:
    """What a trial's run is known by, also to a process that takes it over; None of other runs."""
    if start.parent is None:
        return None
    return "/".join([start.parent.run_id, *start.directory.parts[-2:]])


def _tags(experiment: Experiment, start: Launch) -> dict[str, str]:
    return {
        "preset": start.preset,
        "beta": experiment.beta.label,
        "seed": str(experiment.seed),
        "evaluation.protocol": protocol(experiment),
        "directory": str(start.place),
        **start.tags,
    }


@dataclass
class Ending:
    """How an MLflow run ends where nothing is raised."""

    stopped: str | None = None
    """Why it was ended before its last step, if it was; it becomes the tag ``stopped``."""


@contextmanager
def closing(run: Run) -> Iterator[Ending]:
    """Ends an MLflow run by what happens inside: finished, failed with its error, or killed."""
    ending = Ending()
    try:
        yield ending
    except (KeyboardInterrupt, SystemExit) as end:  # the latter: Ray ends a trial
        asked = signals.cause(end)
        Tracker(run).close("KILLED", f"ended by {asked}" if asked else "interrupted")
        raise
    except BaseException as error:
        Tracker(run).close("FAILED", f"{type(error).__name__}: {error}")
        raise
    if ending.stopped is not None:
        Tracker(run).tags({"stopped": ending.stopped})
    Tracker(run).close("FINISHED" if ending.stopped is None else "KILLED")


def launch(
    experiment: Experiment,
    start: Launch,
    scaling: Scaling,
    check: Callable[[Summary], None] = lambda summary: None,
    **hooks: Any,
) -> Summary:
    """Trains a run, new or resumed, and tracks it; ``hooks`` are those of ``fit``.

    What ``check`` raises, at a run's end, fails the run. Raises StillRunning if another process
    works on it.
    """
    _require_seen(start)
    # A trial's process may have died a moment ago, or its machine, whose lock ends later.
    patience = HANDOVER_S if start.parent is not None else 0.0
    with held(start.place, patience), _stored(start) as mirror:
        run = create(experiment, start)
        with closing(run) as ending:
            _keep_scaling(start.directory, scaling)
            summary = fit(experiment, start.directory, run, scaling, mirror=mirror, **hooks)
            check(summary)
            ending.stopped = summary.stopped
    return summary


def _keep_scaling(directory: Path, scaling: Scaling) -> None:
    """Writes what ``--resume`` goes on with; RunFailed if the storage takes no more."""
    try:
        write_whole(directory / SCALING, json.dumps(asdict(scaling)))
    except OSError as error:
        if is_full(error):
            raise full(error) from None
        raise


@contextmanager
def _stored(start: Launch) -> Iterator[Mirror | None]:
    """Brings what the block leaves in a run's working copy to its store, if it has one.

    Where all went well the copy's checkpoints are deleted. Raises RunFailed if the store does not
    take what it should.
    """
    if start.store is None:
        yield None
        return
    mirror = Mirror(start.store, start.directory)
    try:
        yield mirror
        mirror.push()
        shutil.rmtree(start.directory / CHECKPOINTS, ignore_errors=True)
    except StoreError as error:
        raise RunFailed(f"{error}; the run goes on from what is there: resume it") from None
    except BaseException:
        with suppress(StoreError):
            mirror.push()
        raise
