"""Training under Ray Train: the only module that imports it."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vamf.cluster.bars import PROGRESS, add_note, progress
from vamf.cluster.failures import explained, full, is_final, is_full, lost
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.tracking import Run, Tracker
from vamf.training.loop import Halt, Session, Summary, train
from vamf.training.restoring import Note

__all__ = ["Scaling", "fit", "progress"]

Report = Callable[[Mapping[str, Any]], None]

SUMMARY = "summary.json"
"""The file that says how a run ended."""

POLL_S = 0.2
"""Seconds between Ray Train's looks for reports: a worker waits for the look at its last one."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The processes of a run, and what each of them takes."""

    workers: int = 0
    """Ray Train workers that share each batch; 0 trains in this very process, without a cluster."""
    cpus: float = 1
    """CPUs of a worker."""
    gpus: float | None = None
    """GPUs of a worker, by default 1 where there are any; a part of one lets small runs share."""
    max_failures: int = 3
    """How often lost workers are replaced; the run goes on from its latest checkpoint."""

    def __post_init__(self) -> None:
        if min(self.workers, self.gpus or 0, self.max_failures) < 0 or not self.cpus > 0:
            raise ValueError(
                "scaling needs workers >= 0, cpus > 0, gpus >= 0 and max_failures >= 0; "
                f"got {self.workers}, {self.cpus}, {self.gpus} and {self.max_failures}"
            )

    def check(self, experiment: Experiment) -> None:
        """Raises ValueError unless the batch divides among the workers."""
        if experiment.batch % max(self.workers, 1):
            raise ValueError(
                f"batch must be divisible by the number of workers; "
                f"got {experiment.batch} for {self.workers} workers"
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
) -> Summary:
    """Trains in ``directory``, from its latest checkpoint if it has one, and logs to ``run``.

    ``report`` takes progress when there are 0 workers; ``callbacks`` are Ray Train's, for more.
    ``halt`` may end the run early.
    A worker that is lost is replaced; an error that would come again ends the run. Raises
    NonFiniteLoss, ValueError for what a user can mend, and RunFailed for all else.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
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
    }
    resources = {"CPU": scaling.cpus, **({"GPU": scaling.gpus} if scaling.gpus else {})}
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=bool(scaling.workers and scaling.gpus),
            resources_per_worker=resources if scaling.workers else None,
        ),
        run_config=RunConfig(
            name=directory.name,
            storage_path=str(directory.resolve() / "ray"),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[*callbacks, _ending_for_good()],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _told(error, directory, scaling) from None
    except OSError as error:  # of a run in this process
        if is_full(error):
            raise full(error) from None
        raise
    return Summary.load(directory / SUMMARY)


def _ending_for_good() -> Any:
    """A Ray Train callback: Ray alone would start the workers again whatever they raised."""
    from ray.train import UserCallback

    class EndingForGood(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
            for _, error in sorted(worker_exceptions.items()):
                if is_final(error):
                    raise error  # ends the controller, and with it the other workers

    return EndingForGood()


def _told(error: Any, directory: Path, scaling: Scaling) -> BaseException:
    """What Ray Train's error says, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures is not None:
        return lost(failures, scaling.max_failures, directory)
    return explained(getattr(error, "controller_failure", error), directory)


def _worker(config: dict[str, Any]) -> None:
    """The function that every Ray Train worker runs."""
    experiment = Experiment.from_dict(config["experiment"])
    session = _session(config)
    tracker = Tracker(Run(**config["run"])) if config["run"] and session.leads else None
    if tracker:
        session = replace(
            session,
            log=tracker.metrics,
            picture=_picture(tracker),
            note=_note(session.directory, tracker),
        )
    try:
        train(experiment, session)
    except Exception as error:
        if config["workers"]:
            error.add_note(traceback.format_exc())  # which would not travel to the driver
        raise
    finally:
        if tracker:
            tracker.flush()


def _session(config: dict[str, Any]) -> Session:
    directory, workers = Path(config["directory"]), _place(config["workers"], config["gpus"])
    return Session(
        directory=directory,
        workers=workers,
        wrap=_distributed(workers),
        report=_report(config, workers),
        halt=config["halt"],
    )


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
    mark, given = Path(config["directory"]) / PROGRESS, config["report"]

    def report(progress: Mapping[str, Any]) -> None:
        if workers.rank == 0:
            mark.write_text(str(progress["step"]))
        if config["workers"] > 0:
            import ray.train

            ray.train.report(dict(progress))
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
