"""Trains a run with its folder and its MLflow run, whose status tells how it ended."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from errno import ENOENT
from pathlib import Path
from typing import Any

from vamf import files, serialization, tracking
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.failures import is_full, storage_full
from vamf.cluster.train.fit import fit
from vamf.cluster.train.run_lock import exclusive, require_not_running
from vamf.cluster.train.run_params import dataset, origin, parameters
from vamf.cluster.train.start_delay import reason_in_file
from vamf.cluster.train.store_sync import StoreSync
from vamf.errors import StorageUnusable, StoreError
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.run_layout import CHECKPOINTS, EXPERIMENT, RUN, SCALING, SPOOL
from vamf.store import StoragePath, Store
from vamf.tracking import Run, Tracker
from vamf.tracking.run import located
from vamf.tracking.run_end import closing
from vamf.tracking.tracker import Status
from vamf.training.checkpoints.remote_checkpoints import working_copy
from vamf.training.checkpoints.resume import checkpoints, newest
from vamf.training.evaluation import protocol
from vamf.training.loop import Summary

LOCK_WAIT_S = 120.0
"""Seconds that a trial waits for the lock of the process that had it before."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run's names and locations."""

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
    varied: tuple[str, ...] = ()
    """The settings that the sweep varies."""
    store: Store | None = None
    """The location in an object store that holds the run, if one does."""

    numbered: bool | None = None
    """Whether a new run takes another name if its own exists; None for a run that exists."""

    @property
    def location(self) -> StoragePath:
        """The store or the folder by which users name the run."""
        return self.directory if self.store is None else self.store


def new(location: StoragePath, uri: str, preset: str) -> Launch:
    """A run without a search, named after its folder."""
    uri = located(uri)
    name = location.name
    if not isinstance(location, Store):
        return Launch(directory=location, uri=uri, name=name, preset=preset)
    directory = working_copy(location, "driver")
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier attempt: the store's files count
    return Launch(directory=directory, uri=uri, name=name, preset=preset, store=location)


def claimed(start: Launch) -> Launch:
    """The same run; a new one gets a folder or location that this process has created.

    Raises ValueError if the name exists and the run is not ``numbered``, or is in a store.
    """
    if start.numbered is None:
        return start
    if start.store is not None:
        start.store.claim()
        return replace(start, numbered=None)
    directory = files.claimed(start.directory, numbered=start.numbered)
    return replace(start, directory=directory, name=directory.name, numbered=None)


def scaling_of(location: StoragePath) -> Scaling:
    """The scaling of a run's last attempt; the default if the run has no record of it.

    Raises ValueError if it cannot be read.
    """
    try:
        text = (
            location.read(SCALING)
            if isinstance(location, Store)
            else (location / SCALING).read_bytes()
        )
    except (FileNotFoundError, NotADirectoryError):  # earlier versions saved none
        return Scaling()
    except OSError as error:
        raise ValueError(f"the run could not be read: {error}") from None
    try:
        return serialization.from_dict(Scaling, json.loads(text))
    except ValueError as error:
        raise ValueError(f"the run's {SCALING} must hold a scaling; got {error}") from None


def resumed(location: StoragePath, uri: str) -> tuple[Experiment, Launch]:
    """The experiment and the launch of the run in a folder, to resume it.

    Raises ValueError if there is none, it is still running, no checkpoint of it is intact, MLflow
    has no such run, or MLflow or a store does not answer.
    """
    location = location if isinstance(location, Store) else location.resolve()
    if isinstance(location, Store) or (location / RUN).exists():
        require_not_running(location)  # before its working copy is replaced
    start = new(location, uri, preset="")
    directory = start.directory
    if start.store is not None:
        try:
            StoreSync(start.store, directory).pull()
        except OSError as error:
            raise ValueError(f"the run could not be read: {error}") from None
    if not (directory / RUN).exists():
        raise ValueError(f"no run in {start.location}: {RUN} is missing")
    tracking.check(uri)
    tracking.require(Run.load(directory / RUN, uri))
    experiment = Experiment.load(directory / EXPERIMENT).located()
    if start.store is None:
        experiment = experiment.moved(previous_directory(directory / RUN), directory)
    newest(checkpoints(experiment, directory), experiment)  # raised here rather than by a worker
    return experiment, start


def previous_directory(run_file: Path) -> Path:
    """The folder recorded in a run's ``run.json``: another one if the run was moved."""
    return Run(**json.loads(run_file.read_text())).directory


def close_abandoned(
    run_file: Path, uri: str, status: Status = "KILLED", why: str = "interrupted"
) -> None:
    """Ends the MLflow run of a ``run.json`` whose process ended and is not resumed now."""
    Tracker(Run.load(run_file, uri)).close(status, why)


def create(experiment: Experiment, start: Launch) -> Run:
    """Creates a new run's folder and MLflow run, or rejoins those that exist.

    A trial waits for an MLflow that does not answer. Raises ValueError if the folder holds another
    experiment, NotCreated if MLflow does not answer or refuses, FileNotFoundError on a node that
    does not see the folder of the sweep.
    """
    _require_sweep_folder(start)
    saved, run_file = start.directory / EXPERIMENT, start.directory / RUN
    if run_file.exists():
        if experiment.differences(Experiment.load(saved)):
            raise ValueError(f"{start.directory} holds another experiment")
        run = Run.load(run_file, start.uri)
        tracking.rejoin(run)
        if start.store is None and previous_directory(run_file) != run.directory:
            experiment.save(saved)
            run.save(run_file)
            Tracker(run).tags({"directory": str(start.directory)})
        return run
    start.directory.mkdir(parents=True, exist_ok=True)
    experiment.save(saved)
    with reason_in_file(start.directory) as write_reason:
        run = tracking.create(
            start.uri,
            name=start.name,
            params=parameters(experiment, start.preset, start.varied),
            tags=_tags(experiment, start),
            spool=start.directory / SPOOL,
            parent=start.parent,
            key=_key(start),
            wait=write_reason if start.parent is not None else None,
        )
    run.save(run_file)
    tracker = Tracker(run)
    tracker.artifact(saved)
    tracker.dataset(*dataset(experiment))
    return run


def _require_sweep_folder(start: Launch) -> None:
    if start.parent is not None and not (sweep := Path(start.parent.spool).parent).is_dir():
        raise FileNotFoundError(ENOENT, "this node does not see the sweep's folder", str(sweep))


def _key(start: Launch) -> str | None:
    """The key of a trial's run, the same after a restart; None for a run without a search."""
    if start.parent is None:
        return None
    return "/".join([start.parent.run_id, *start.directory.parts[-2:]])


def _tags(experiment: Experiment, start: Launch) -> dict[str, str]:
    return {
        "preset": start.preset,
        "beta": experiment.beta.label,
        "seed": str(experiment.seed),
        "evaluation.protocol": protocol(experiment),
        "directory": str(start.location),
        **origin(experiment),
        **start.tags,
    }


def launch(
    experiment: Experiment,
    start: Launch,
    scaling: Scaling,
    check: Callable[[Summary], None] = lambda summary: None,
    **hooks: Any,
) -> Summary:
    """Trains a run, new or resumed, and tracks it; ``hooks`` are those of ``fit``.

    ``check`` is called with the summary at the end; if it raises, the run fails. Raises
    StillRunning if another process works on the run.
    """
    _require_sweep_folder(start)
    # The lock of a trial's former process may end some time after that process.
    wait_s = LOCK_WAIT_S if start.parent is not None else 0.0
    with exclusive(start.location, wait_s), _stored(start) as mirror:
        run = create(experiment, start)
        with closing(run) as ending:
            _save_scaling(start.directory, scaling)
            summary = fit(experiment, start.directory, run, scaling, mirror=mirror, **hooks)
            check(summary)
            ending.stopped = summary.stopped
    return summary


def _save_scaling(directory: Path, scaling: Scaling) -> None:
    """Writes the scaling, which ``--resume`` reads; RunFailed if the storage is full."""
    try:
        write_whole(directory / SCALING, json.dumps(asdict(scaling)))
    except OSError as error:
        if is_full(error):
            raise storage_full(error) from None
        raise


@contextmanager
def _stored(start: Launch) -> Iterator[StoreSync | None]:
    """Uploads, at the block's end, a run's working copy to its store, if it has one.

    Without an error the copy's checkpoints are then deleted. Raises StorageUnusable if the upload
    fails.
    """
    if start.store is None:
        yield None
        return
    mirror = StoreSync(start.store, start.directory)
    try:
        yield mirror
        mirror.push()
        shutil.rmtree(start.directory / CHECKPOINTS, ignore_errors=True)
    except StoreError as error:
        raise StorageUnusable(f"{error}; resume the run") from None
    except BaseException:
        with suppress(StoreError):
            mirror.push()
        raise
