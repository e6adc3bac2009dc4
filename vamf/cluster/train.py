"""Training under Ray Train, which this module and the workers' import."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vamf.cluster import signals, worker
from vamf.cluster.bars import NOTES, PROGRESS
from vamf.cluster.failures import explained, full, is_final, is_full, lost
from vamf.cluster.mirror import Mirror
from vamf.cluster.notice import SAVE_S, Notice
from vamf.cluster.scaling import Scaling
from vamf.cluster.shared import marked
from vamf.cluster.worker import Report
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.store import StoreError
from vamf.tracking import Run
from vamf.training.loop import Halt, Summary

SUMMARY = "summary.json"
"""The file that says how a run ended."""

POLL_S = 0.2
"""Seconds between Ray Train's looks for reports: a worker waits for the look at its last one."""


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
        with _handed_over(directory, mirror, scaling) as mark, _noticed(directory, config):
            TorchTrainer(
                worker.work,
                train_loop_config=config | {"mark": str(mark) if mark else None},
                scaling_config=_processes(scaling),
                run_config=_run_config(directory, scaling, callbacks),
            ).fit()
    except TrainingFailedError as error:
        raise _told(error, directory, scaling) from None
    except OSError as error:  # of this process
        if is_full(error):
            raise full(error, directory) from None
        raise
    return Summary.load(directory / SUMMARY)


@contextmanager
def _noticed(directory: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """While it lasts, workers that share the folder save their state before a signal ends them."""
    if not config["workers"] or config["store"]:
        yield
        return
    notice = Notice(directory)
    notice.take()  # one that an earlier attempt has left

    def ask() -> None:
        with suppress(OSError):
            notice.give()

    with signals.prepared(ask, notice.taken, SAVE_S):
        yield


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
            write_whole(directory / PROGRESS, str(metrics[0]["step"]))
            write_whole(directory / NOTES, metrics[0][NOTES])

    return Telling()


def _told(error: Any, directory: Path, scaling: Scaling) -> BaseException:
    """What Ray Train's error says, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures is not None:
        return lost(failures, scaling.max_failures, directory)
    return explained(getattr(error, "controller_failure", error), directory)
