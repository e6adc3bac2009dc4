"""The training loop: the same in a Ray Train worker, in a Ray Tune trial and in a test."""

import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vamf.data.dataset import ImageSet
from vamf.diagnostics.probe import Probe
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.metrics.distances import Measurement
from vamf.run_layout import SAMPLES, SUMMARY, step_name
from vamf.training import replica_consistency
from vamf.training.checkpoints.async_saver import Saver
from vamf.training.checkpoints.resume import NoteRecorder, checkpoints, restore
from vamf.training.elapsed_time import Clock
from vamf.training.evaluation import Metrics, evaluate, generate_from
from vamf.training.evaluation_log import add
from vamf.training.landscape_report import keep_landscape, last_estimates
from vamf.training.logged_values import logged_values, peak_gib
from vamf.training.pictures import pictured, save_picture
from vamf.training.step.memory import make_room, out_of_memory
from vamf.training.step.networks import as_sampled
from vamf.training.step.precision import require
from vamf.training.step.preparation import prepare_steps
from vamf.training.step.trainer import Trainer
from vamf.training.warm_start.start import start_networks

ERROR = "_se"
"""What follows a metric's name in the name of its standard error."""


def _ignore(*_: object) -> None:
    pass


class EarlyStop(Protocol):
    """Decides whether a run ends before its last step."""

    @property
    def rungs(self) -> Sequence[int]:
        """The steps at which it is called, after an evaluation."""

    def __call__(self, step: int, metrics: Metrics, seconds: float) -> str | None:
        """The reason to end the run at this step, or None.

        ``seconds`` is the time of measurements that were made only for this call.
        """


@dataclass(frozen=True, kw_only=True)
class Session:
    """The environment of a training loop: its folder, workers and callbacks."""

    directory: Path
    """The run's folder: on storage that all workers see, or a local copy from an object store."""
    workers: Workers = field(default_factory=Workers)
    """This process's rank among the run's workers."""
    gpus: float = 1.0
    """The GPUs that are reserved for each worker that is on one: a share, if runs share it."""
    wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective
    """Wraps the objective for distributed training."""
    log: Callable[[Mapping[str, float], int], None] = _ignore
    """Receives named metrics and their step; called by rank 0 only."""
    picture: Callable[[Path, int], None] = _ignore
    """Receives a picture file and its step; called by rank 0 only."""
    note: NoteRecorder = _ignore
    """Receives the name and the text of something unusual; called by rank 0 only."""
    report: Callable[[Mapping[str, Any]], None] = _ignore
    """Receives progress; called by every rank, equally often."""
    early_stop: EarlyStop | None = None
    """Decides whether to end early; called by rank 0 only."""
    interruption: Callable[[], BaseException | None] = lambda: None
    """Called after each step; returns what to raise after a save. For one worker only."""
    save_requested: Callable[[], bool] = lambda: False
    """Called after each step by rank 0: whether to save before the workers are ended."""
    save_done: Callable[[], None] = _ignore
    """Called after a requested save."""
    on_checkpoint: Callable[[], None] = _ignore
    """Called by rank 0 in another thread, after each checkpoint is on disk."""
    fetch_checkpoint: Callable[[Path], None] = _ignore
    """Makes a checkpoint of rank 0 available at the given path; called by all ranks."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs: True on rank 0."""
        return self.workers.rank == 0

    def at_rung(self, step: int) -> bool:
        """Whether the run may end early at a step."""
        return self.early_stop is not None and step in self.early_stop.rungs


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended."""

    step: int
    """Training steps taken."""
    seconds: float
    """Wall-clock seconds of the loop, evaluation included, over all attempts."""
    metrics: Metrics
    """The last evaluation, and the estimates of the last landscape, if any."""
    stopped: str | None = None
    """Why the run ended before its last step; None if it did not."""
    gpu_seconds: float = 0.0
    """Seconds of each process on a GPU times the GPUs that it has reserved, summed."""

    def save(self, path: Path) -> None:
        """Writes JSON atomically."""
        metrics = {name: list(measurement) for name, measurement in self.metrics.items()}
        write_whole(path, json.dumps(asdict(self) | {"metrics": metrics}))

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """Reads a file that ``save`` wrote."""
        data = json.loads(path.read_text())
        data["metrics"] = {name: Measurement(*pair) for name, pair in data["metrics"].items()}
        return cls(**data)


def train(experiment: Experiment, session: Session) -> Summary:
    """Trains to the experiment's last step, from the newest intact checkpoint in the run's folder.

    Raises on all workers NonFiniteLoss if a loss is not finite, and WorkersDiffer if the workers'
    experiment, code, data or state differ; checkpoints do not change. Raises OSError if a
    checkpoint cannot be written, ValueError if steps deviate too far from float64. Frees the run's
    memory at the end, so one process can train many runs.
    """
    try:
        return _train(experiment, session)
    finally:
        # matplotlib's savefig leaves a reference cycle that holds its callers' frames.
        gc.collect()


def _train(experiment: Experiment, session: Session) -> Summary:
    clock = Clock(session.directory, session.workers, session.gpus)
    trainer = _prepare(experiment, session)
    if session.leads:
        session.directory.mkdir(parents=True, exist_ok=True)
    folder = checkpoints(experiment, session.directory)
    resumed = restore(trainer, folder, session.note, session.fetch_checkpoint)
    starts = not resumed and experiment.init is not None
    if starts:
        _start(trainer, session)
    _agree(trainer)
    if trainer.step < experiment.steps:
        _require_memory(trainer, lambda: _prepare_step(trainer, session))
    metrics = _last_landscape(trainer, session) if resumed else {}
    stopped: str | None = None
    if session.at_rung(trainer.step):  # an earlier attempt died before it reported a decision
        found, stopped = _asked(trainer, session, lambda: _evaluated(trainer))
        metrics |= found
    elif trainer.step == experiment.steps:  # the last step was done before the run was resumed
        metrics |= _evaluated(trainer)
    with Saver(folder, session.workers.described(), session.on_checkpoint) as saver:
        if starts and session.leads:  # so that no later attempt needs the source
            saver.save(experiment, trainer.state_dict(), {})
        first = trainer.step + 1
        clock.begin_steps(trainer.step)
        while trainer.step < experiment.steps and stopped is None:
            _require_memory(trainer, trainer.train_step)
            if trainer.step == first:
                _agree(trainer)
            after = partial(_after_step, trainer, session, saver, clock)
            if session.at_rung(trainer.step):
                found, stopped = _asked(trainer, session, after)
                metrics |= found
            else:
                metrics |= after()
            _end_if_asked(trainer, session, saver, clock)
            if session.leads and session.save_requested():
                _keep(trainer, saver, clock)
                session.save_done()
    spent = clock.spent()._asdict()
    summary = Summary(step=trainer.step, metrics=metrics, stopped=stopped, **spent)
    if session.leads:
        clock.save()
        summary.save(session.directory / SUMMARY)
    return summary


def _end_if_asked(trainer: Trainer, session: Session, saver: Saver, clock: Clock) -> None:
    """Raises the session's interruption, if any, once the state is on disk."""
    end = session.interruption()
    if end is None or trainer.step == trainer.experiment.steps:
        return
    if trainer.step % trainer.experiment.checkpoint.every:  # else it is already being saved
        saver.save(trainer.experiment, trainer.state_dict(), trainer.collect())
    saver.drain()
    clock.save()
    raise end


def _keep(trainer: Trainer, saver: Saver, clock: Clock) -> None:
    """Saves the state that all workers share, on one worker, unless it is not finite."""
    due = trainer.step % trainer.experiment.checkpoint.every == 0  # already being saved
    if not due and all(p.isfinite().all() for p in trainer.net.parameters()):
        saver.save(trainer.experiment, trainer.state_dict(), {})
    saver.drain()
    clock.save()


def _asked(
    trainer: Trainer, session: Session, measure: Callable[[], Metrics]
) -> tuple[Metrics, str | None]:
    """Measures at a rung; returns the metrics and, on all workers, the reason to end, if any."""
    start, why = time.monotonic(), None
    metrics = measure()
    if session.leads and session.early_stop is not None:
        due = trainer.step % trainer.experiment.evaluation.every == 0
        why = session.early_stop(trainer.step, metrics, 0.0 if due else time.monotonic() - start)
    return metrics, trainer.workers.gather(why or "")[0] or None


def _prepare(experiment: Experiment, session: Session) -> Trainer:
    """A trainer at step 0; raises WorkersDiffer unless all workers train the same experiment."""
    workers = session.workers
    require(experiment.compute, workers.device)
    dataset = experiment.data.load("train")
    if workers.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(workers.device)  # of the run before it in this process
    if workers.world > 1:
        replica_consistency.agree(workers, replica_consistency.setting(experiment, dataset))
    if isinstance(dataset, ImageSet):
        dataset = dataset.to(workers.device)
    return Trainer(experiment, dataset, workers, session.wrap)


def _start(trainer: Trainer, session: Session) -> None:
    """Starts from the weights that the experiment names, and notes what differs."""
    notes = start_networks(trainer.experiment, trainer.net, trainer.ema)
    if session.leads:
        for name, text in notes.items():
            session.note(name, text)


def _prepare_step(trainer: Trainer, session: Session) -> None:
    """Prepares the steps, and notes into how many micro-batches each is split, if into several."""
    prepare_steps(trainer)
    if session.leads and (parts := trainer.micro_batches) > 1:
        size = trainer.experiment.batch // trainer.workers.world // parts
        session.note("memory.micro_batches", f"a step has {parts} micro-batches of {size} samples")


def _require_memory(trainer: Trainer, action: Callable[[], None]) -> None:
    """Runs ``action``; raises ValueError, with settings that fit, if the GPU's memory is full."""
    try:
        action()
        return
    except torch.OutOfMemoryError:
        pass  # outside of it: the error holds the memory
    raise ValueError(out_of_memory(trainer))


def _agree(trainer: Trainer) -> None:
    """Raises WorkersDiffer unless all workers have the same state."""
    if trainer.workers.world > 1:
        replica_consistency.agree(trainer.workers, replica_consistency.state(trainer.state_dict()))


def _after_step(trainer: Trainer, session: Session, saver: Saver, clock: Clock) -> Metrics:
    """Logs, evaluates, saves and reports what is due after a step; returns the metrics."""
    experiment, step = trainer.experiment, trainer.step
    last = step == experiment.steps
    log_due = last or step % experiment.log_every == 0
    evaluation_due = last or step % experiment.evaluation.every == 0 or session.at_rung(step)
    probe_due = experiment.probe is not None and step % experiment.probe.every == 0
    checkpoint_due = last or step % experiment.checkpoint.every == 0
    if not (log_due or evaluation_due or checkpoint_due or probe_due):
        return {}
    values = trainer.collect()  # raises before a state that is not finite is saved
    clock.end_steps(step)
    if log_due:
        values |= logged_values(trainer, clock)
    metrics = _evaluated(trainer) if evaluation_due else {}
    if experiment.probe is not None and probe_due:
        metrics |= _probe(trainer, session, experiment.probe)
    values |= {name: measurement.value for name, measurement in metrics.items()}
    values |= {f"{name}{ERROR}": measurement.error for name, measurement in metrics.items()}
    if session.leads:
        _note_lost(metrics, step, session.note)
        _write(trainer, session, values, evaluation_due)
        if evaluation_due:
            add(session.directory, step, clock.mean_step(), metrics, peak_gib(trainer))
        clock.save()
        if checkpoint_due:  # after logging: a restarted worker must not log these steps twice
            saver.save(experiment, trainer.state_dict(), values)
        if last:
            saver.drain()  # a receiver of the last step's report can rely on its checkpoint
    session.report({"step": step, **values})
    clock.begin_steps(step)
    return metrics


def _evaluated(trainer: Trainer) -> Metrics:
    make_room(trainer)
    return evaluate(trainer)


def _note_lost(metrics: Metrics, step: int, note: NoteRecorder) -> None:
    """Records which metrics of an evaluation are not finite: its checkpoint is never the best."""
    values = {n: m.value for n, m in metrics.items() if n.startswith("eval/")}
    if lost := [f"{n} is {v}" for n, v in values.items() if not math.isfinite(v)]:
        note("evaluation.not_finite", f"step {step} is never the best: {', '.join(lost)}")


def _probe(trainer: Trainer, session: Session, plan: Probe) -> Metrics:
    """Measures a landscape on all workers; rank 0 saves it and its plot."""
    make_room(trainer)
    landscape = trainer.probe(plan)
    if session.leads:
        path = keep_landscape(landscape, session.directory, trainer.step)
        session.picture(path, trainer.step)
    return {name: Measurement(*estimate) for name, estimate in landscape.estimates().items()}


def _last_landscape(trainer: Trainer, session: Session) -> Metrics:
    """The estimates of the run's last landscape, of an earlier attempt, on all workers."""
    own = last_estimates(session.directory, trainer.step) if session.leads else {}
    estimates = json.loads(trainer.workers.gather(json.dumps(own))[0])
    return {name: Measurement(*estimate) for name, estimate in estimates.items()}


def _write(
    trainer: Trainer, session: Session, values: Mapping[str, float], evaluated: bool
) -> None:
    experiment, step, shape = trainer.experiment, trainer.step, trainer.dataset.shape
    # Raises if the file system is gone: saving the picture would create the folder again.
    session.directory.stat()
    if evaluated:
        path = session.directory / SAMPLES / f"{step_name(step)}.png"
        generate = generate_from(as_sampled(trainer.ema), experiment, shape, session.workers.device)
        save_picture(generate(pictured(shape)).cpu(), path)
        session.picture(path, step)
    session.log(values, step)
