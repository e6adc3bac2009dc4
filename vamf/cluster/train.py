"""Training under Ray Train: the only module that imports it."""

import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vamf.cluster.bars import NOTES, PROGRESS, add_note, notes, progress
from vamf.cluster.failures import explained, full, is_final, is_full, lost
from vamf.cluster.mirror import Mirror
from vamf.cluster.shared import marked, unseen
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.store import Store, StoreError
from vamf.tracking import Run, Tracker
from vamf.training.fetching import CHECKPOINTS, fetch_alone, working_copy
from vamf.training.loop import Halt, Session, Summary, train
from vamf.training.restoring import Note

__all__ = ["Scaling", "fit", "progress"]

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""How Ray spreads workers over nodes."""

Report = Callable[[Mapping[str, Any]], None]

EXPERIMENT, SUMMARY = "experiment.json", "summary.json"
"""The files that say what a run is, and how it ended."""

POLL_S = 0.2
"""Seconds between Ray Train's looks for reports: a worker waits for the look at its last one."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The processes of a run, and what each of them takes."""

    workers: int = 0
    """Ray Train workers that share each batch; 0 trains in this very process, without a cluster."""
    min_workers: int | None = None
    """Fewest workers to begin or to go on with while there is no room for all of them; by default
    all. Ray changes their number as nodes come and go, each time from the latest checkpoint."""
    resize_every: float = 60
    """Seconds between two looks for room for more workers, if there may be fewer."""
    cpus: float = 1
    """CPUs of a worker."""
    gpus: float | None = None
    """GPUs of a worker, by default 1 where there are any; a part of one lets small runs share."""
    placement: Placement = "PACK"
    """On few nodes or on many; STRICT: on one node, or no two workers on the same."""
    wait: float = 0
    """Seconds to wait for nodes that are being started, before a run without room is refused."""
    max_failures: int = 3
    """How often lost workers are replaced; the run goes on from its latest checkpoint."""

    def __post_init__(self) -> None:
        self._check_elastic()
        if min(self.workers, self.gpus or 0, self.max_failures) < 0 or not self.cpus > 0:
            raise ValueError(
                "scaling needs workers >= 0, cpus > 0, gpus >= 0 and max_failures >= 0; "
                f"got {self.workers}, {self.cpus}, {self.gpus} and {self.max_failures}"
            )

    def _check_elastic(self) -> None:
        if self.wait < 0 or not self.resize_every > 0:
            raise ValueError(
                "scaling needs wait >= 0 and resize_every > 0; "
                f"got {self.wait} and {self.resize_every}"
            )
        if self.min_workers is None:
            return
        if not 1 <= self.min_workers <= self.workers:
            raise ValueError(
                f"min_workers must lie in 1, ..., workers; got {self.min_workers} of {self.workers}"
            )
        if self.placement.startswith("STRICT"):  # Ray's elastic policy does not heed it
            raise ValueError(f"min_workers needs placement PACK or SPREAD; got {self.placement}")

    @property
    def fewest(self) -> int:
        """The fewest workers that the run begins with."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def need(self) -> dict[str, float]:
        """What a worker takes, by Ray's names; GPUs only once they are settled."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def check(self, experiment: Experiment) -> None:
        """Raises ValueError unless the batch divides among the workers, however many there are."""
        for workers in range(max(self.fewest, 1), self.workers + 1):
            if experiment.batch % workers:
                raise ValueError(
                    f"batch must be divisible by the number of workers; "
                    f"got {experiment.batch} for {workers} workers"
                )


def fit(
    experiment: Experiment,
    directory: Path,
    run: Run | None,
    scaling: Scaling,
    *,
    report: Report | None = None,
    callbacks: Sequence[Any] = (),
    halt: Halt | None = None,
    mirror: Mirror | None = None,
) -> Summary:
    """Trains in ``directory``, from its latest checkpoint if it has one, and logs to ``run``.

    With a ``mirror`` the run is in its store: workers bring it to folders of their own, and back.
    ``report`` takes progress when there are 0 workers; ``callbacks`` are Ray Train's, for more.
    ``halt`` may end the run early.
    A worker that is lost is replaced; an error that would come again ends the run. Raises
    NonFiniteLoss, ValueError for what a user can mend, and RunFailed for all else.
    """
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_S))  # 2 s otherwise
    scaling.check(experiment)
    (directory / SUMMARY).unlink(missing_ok=True)
    config = {
        "experiment": experiment.to_dict(),
        "directory": str(directory.resolve()),
        "run": asdict(run) if run else None,
        "workers": scaling.workers,
        "gpus": scaling.gpus,
        "report": report if scaling.workers == 0 else None,
        "halt": halt,
        "mirror": mirror if scaling.workers == 0 else None,
        "store": mirror.store.url if mirror is not None and scaling.workers else None,
    }
    callbacks = [*callbacks, _ending_for_good()]
    if config["store"]:
        callbacks.append(_telling(directory))
    try:
        with _handed_over(directory, mirror, scaling) as mark:
            TorchTrainer(
                _worker,
                train_loop_config=config | {"mark": str(mark) if mark else None},
                scaling_config=_processes(scaling),
                run_config=_run_config(directory, scaling, callbacks),
            ).fit()
    except TrainingFailedError as error:
        raise _told(error, directory, scaling) from None
    except OSError as error:  # of this process
        if is_full(error):
            raise full(error) from None
        raise
    return Summary.load(directory / SUMMARY)


@contextmanager
def _handed_over(directory: Path, mirror: Mirror | None, scaling: Scaling) -> Iterator[Path | None]:
    """While it lasts the run's files are the workers'; yields how these know a shared folder."""
    if mirror is None:
        with marked(directory.resolve()) as mark:
            yield mark
        return
    mirror.push()
    try:
        yield None
    except BaseException:
        with suppress(StoreError):  # what ended the run is more telling
            _taken_back(mirror, scaling)
        raise
    _taken_back(mirror, scaling)


def _taken_back(mirror: Mirror, scaling: Scaling) -> None:
    if scaling.workers:  # otherwise it is this process that wrote them
        mirror.pull()


def _processes(scaling: Scaling) -> Any:
    """Ray Train's own form of a scaling."""
    from ray.train import ScalingConfig

    if scaling.workers == 0:
        return ScalingConfig(num_workers=0)
    elastic = scaling.min_workers is not None
    return ScalingConfig(
        num_workers=(scaling.fewest, scaling.workers) if elastic else scaling.workers,
        use_gpu=bool(scaling.gpus),
        resources_per_worker=scaling.need,
        placement_strategy=scaling.placement,
        elastic_resize_monitor_interval_s=scaling.resize_every,
    )


def _run_config(directory: Path, scaling: Scaling, callbacks: Sequence[Any]) -> Any:
    from ray.train import FailureConfig, RunConfig

    return RunConfig(
        name=directory.name,
        storage_path=str(directory.resolve() / "ray"),
        failure_config=FailureConfig(max_failures=scaling.max_failures),
        callbacks=list(callbacks),
    )


def _ending_for_good() -> Any:
    """A Ray Train callback: Ray alone would start the workers again whatever they raised."""
    from ray.train import UserCallback

    class EndingForGood(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
            for _, error in sorted(worker_exceptions.items()):
                if is_final(error):
                    raise error  # ends the controller, and with it the other workers

    return EndingForGood()


def _telling(directory: Path) -> Any:
    """A Ray Train callback: brings progress and notes from rank 0's node to the driver's folder."""
    from ray.train import UserCallback

    class Telling(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict], checkpoint: Any) -> None:
            (directory / PROGRESS).write_text(str(metrics[0]["step"]))
            (directory / NOTES).write_text(metrics[0][NOTES])

    return Telling()


def _told(error: Any, directory: Path, scaling: Scaling) -> BaseException:
    """What Ray Train's error says, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures is not None:
        return lost(failures, scaling.max_failures, directory)
    return explained(getattr(error, "controller_failure", error), directory)


def _worker(config: dict[str, Any]) -> None:
    """The function that every Ray Train worker runs."""
    if config["mark"] and not (mark := Path(config["mark"])).exists():
        raise unseen(mark.parent, [f"node {socket.gethostname()}"])
    workers = _place(config["workers"], config["gpus"])
    try:
        config, mirror = _brought(config, workers)
        tracker = _tracker(config) if config["run"] and workers.rank == 0 else None
        session = _session(config, workers, tracker, mirror)
        with mirror.following(session.note) if mirror else nullcontext():
            try:
                train(Experiment.from_dict(config["experiment"]), session)
            finally:
                if tracker:
                    tracker.flush()
        if config["store"]:
            shutil.rmtree(Path(config["directory"]) / CHECKPOINTS, ignore_errors=True)
    except Exception as error:
        if config["workers"]:
            error.add_note(traceback.format_exc())  # which would not travel to the driver
        raise


def _brought(config: dict[str, Any], workers: Workers) -> tuple[dict[str, Any], Mirror | None]:
    """With a store, brings the run to a folder of this node; only rank 0 brings anything back."""
    mirror = config["mirror"]
    if config["store"]:
        store = Store(config["store"])
        folder = working_copy(store, "worker" if workers.rank == 0 else "node")
        config = config | {"directory": str(folder)}
        mirror = Mirror(store, folder) if workers.rank == 0 else None
        if mirror:
            mirror.clear()
            mirror.pull()
            if not (folder / EXPERIMENT).exists():
                raise unseen(store, [f"node {socket.gethostname()}"])
    if mirror:
        mirror.fetch()
    return config, mirror


def _tracker(config: dict[str, Any]) -> Tracker:
    run = Run(**config["run"])
    return Tracker(run.kept_in(Path(config["directory"])))


def _session(
    config: dict[str, Any], workers: Workers, tracker: Tracker | None, mirror: Mirror | None
) -> Session:
    directory = Path(config["directory"])
    session = Session(
        directory=directory,
        workers=workers,
        wrap=_distributed(workers),
        report=_report(config, workers),
        halt=config["halt"],
    )
    if tracker:
        session = replace(
            session,
            log=tracker.metrics,
            picture=_picture(tracker),
            note=_note(directory, tracker),
        )
    if mirror:
        session = replace(session, saved=mirror.changed)
    elif config["store"]:
        run = Store(config["store"])
        session = replace(session, fetch=lambda path: fetch_alone(run, path))
    return session


def _place(workers: int, gpus: float | None) -> Workers:
    if workers == 0:
        use_gpu = gpus != 0 and torch.cuda.is_available()
        return Workers(device=torch.device("cuda" if use_gpu else "cpu"))
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    return Workers(context.get_world_rank(), context.get_world_size(), get_device())


def _distributed(workers: Workers) -> Callable[[nn.Module], nn.Module]:
    if workers.world == 1:
        return lambda objective: objective
    devices = [workers.device] if workers.device.type == "cuda" else None
    return lambda objective: DistributedDataParallel(
        objective, device_ids=devices, broadcast_buffers=False
    )


def _report(config: dict[str, Any], workers: Workers) -> Report:
    directory, given = Path(config["directory"]), config["report"]

    def report(progress: Mapping[str, Any]) -> None:
        if workers.rank == 0:
            (directory / PROGRESS).write_text(str(progress["step"]))
        if config["workers"] > 0:
            import ray.train

            noted = {NOTES: "".join(f"{n}\n" for n in notes(directory))} if config["store"] else {}
            ray.train.report({**progress, **noted})
        elif given:
            given(progress)

    return report


def _note(directory: Path, tracker: Tracker) -> Note:
    def note(name: str, text: str) -> None:
        add_note(directory, text)
        tracker.tags({name: text})

    return note


def _picture(tracker: Tracker) -> Callable[[Path, int], None]:
    return lambda path, step: tracker.image(path, path.parent.name, step)
