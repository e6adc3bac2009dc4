"""Trains a run by Ray Train, which only this module and ``worker`` import."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vamf import signals
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.ray.storage_check import probe_file
from vamf.cluster.train import worker
from vamf.cluster.train.failures import (
    as_driver_error,
    is_final,
    is_full,
    storage_full,
    too_many_failures,
)
from vamf.cluster.train.progress import described
from vamf.cluster.train.save_request import SAVE_S, SaveRequest
from vamf.cluster.train.store_sync import StoreSync
from vamf.cluster.train.worker import Report
from vamf.compat import ray as compat
from vamf.errors import StoreError
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.run_layout import NOTES, PROGRESS, RAY, SUMMARY
from vamf.tracking import Run
from vamf.training.loop import EarlyStop, Summary

POLL_S = 0.2
"""Seconds between two checks of Ray Train for reports; a worker waits for the last check."""


def fit(
    experiment: Experiment,
    directory: Path,
    run: Run | None,
    scaling: Scaling,
    *,
    report: Report | None = None,
    callbacks: Sequence[Any] = (),
    early_stop: EarlyStop | None = None,
    mirror: StoreSync | None = None,
) -> Summary:
    """Trains in ``directory``, from its latest checkpoint if it has one, and logs to ``run``.

    With a ``mirror`` the run is in its store, and workers use local copies. ``report`` receives the
    progress of a run of 0 workers; ``callbacks`` are Ray Train's, for a run of more.
    ``early_stop`` may end the run early. A lost worker is replaced; an error that would be raised
    again ends the run. Raises NonFiniteLoss, ValueError for what a user can fix, and RunFailed for
    all else.
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
        "early_stop": early_stop,
        "mirror": mirror if scaling.workers == 0 else None,
        "store": mirror.store.url if mirror is not None and scaling.workers else None,
    }
    callbacks = [*callbacks, _stop_on_final_error()]
    if config["store"]:
        callbacks.append(_forwarded_progress(directory))
    try:
        with (
            _shared_files(directory, mirror, scaling) as probe,
            _saving_before_signals(directory, config),
            compat.cluster_named() if scaling.workers else nullcontext(),
        ):
            TorchTrainer(
                worker.work,
                train_loop_config=config | {"probe": str(probe) if probe else None},
                scaling_config=_processes(scaling),
                run_config=_run_config(directory, scaling, callbacks),
            ).fit()
    except TrainingFailedError as error:
        raise _translated(error, directory, scaling) from None
    except OSError as error:  # of this process
        if is_full(error):
            raise storage_full(error, directory) from None
        raise
    return Summary.load(directory / SUMMARY)


@contextmanager
def _saving_before_signals(directory: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, workers that share the folder save their state before a signal ends it."""
    if not config["workers"] or config["store"]:
        yield
        return
    request = SaveRequest(directory)
    request.clear()  # an earlier attempt may have left one

    def ask() -> None:
        with suppress(OSError):
            request.make()

    with signals.prepared(ask, request.is_cleared, SAVE_S):
        yield


@contextmanager
def _shared_files(
    directory: Path, mirror: StoreSync | None, scaling: Scaling
) -> Iterator[Path | None]:
    """Within the block workers own the run's files; yields the probe file of a shared folder."""
    if mirror is None:
        with probe_file(directory.resolve()) as probe:
            yield probe
        return
    mirror.push()
    try:
        yield None
    except BaseException:
        with suppress(StoreError):  # the error that ended the run matters more
            _pull(mirror, scaling)
        raise
    _pull(mirror, scaling)


def _pull(mirror: StoreSync, scaling: Scaling) -> None:
    if scaling.workers:  # otherwise this process has written the files
        mirror.pull()


def _processes(scaling: Scaling) -> Any:
    """A scaling as Ray Train's ScalingConfig."""
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
        storage_path=str(directory.resolve() / RAY),
        failure_config=FailureConfig(max_failures=scaling.max_failures),
        callbacks=list(callbacks),
    )


def _stop_on_final_error() -> Any:
    """A Ray Train callback that ends a run on a final error; Ray would restart the workers."""
    from ray.train import UserCallback

    class StopOnFinalError(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
            for _, error in sorted(worker_exceptions.items()):
                if is_final(error):
                    raise error  # ends the controller, and with it the other workers

    return StopOnFinalError()


def _forwarded_progress(directory: Path) -> Any:
    """A Ray Train callback that copies progress and notes of rank 0 to the driver's folder."""
    from ray.train import UserCallback

    class ForwardedProgress(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict], checkpoint: Any) -> None:
            write_whole(directory / PROGRESS, described(metrics[0]))
            write_whole(directory / NOTES, metrics[0][NOTES])

    return ForwardedProgress()


def _translated(error: Any, directory: Path, scaling: Scaling) -> BaseException:
    """Ray Train's error as one of vamf, with a message of one line."""
    failures = getattr(error, "worker_failures", None)
    if failures is not None:
        return too_many_failures(failures, scaling.max_failures, directory)
    return as_driver_error(getattr(error, "controller_failure", error), directory)
