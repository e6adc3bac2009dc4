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
from vamf.data.streaming import StreamedSet
from vamf.diagnostics.probe import Probe
from vamf.diagnostics.variance import TIMES
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.files import write_whole
from vamf.metrics.distances import Measurement
from vamf.training import agreement
from vamf.training.evaluation import Metrics, evaluate, generate_from
from vamf.training.landscapes import plot_landscape, save_landscape
from vamf.training.networks import as_sampled
from vamf.training.numerics import self_test
from vamf.training.pictures import pictured, save_picture
from vamf.training.precision import require
from vamf.training.restoring import Note, checkpoints, restore
from vamf.training.saving import Saver
from vamf.training.spent import Clock
from vamf.training.trainer import Trainer


def _ignore(*_: object) -> None:
    pass


class Halt(Protocol):
    """Who may end a run before its last step."""

    @property
    def rungs(self) -> Sequence[int]:
        """The steps at which it is asked, after an evaluation."""

    def __call__(self, step: int, metrics: Metrics, seconds: float) -> str | None:
        """Why the run ends at this step, or None; ``seconds`` is what asking cost to measure."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where a loop runs and whom it tells: all that differs between its hosts."""

    directory: Path
    """The run's folder, on storage that all workers see, or a copy of it from an object store."""
    workers: Workers = field(default_factory=Workers)
    """This process among the run's workers."""
    wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective
    """Makes the objective a distributed one."""
    log: Callable[[Mapping[str, float], int], None] = _ignore
    """Takes figures and their step; called by rank 0 only."""
    picture: Callable[[Path, int], None] = _ignore
    """Takes a picture file and its step; called by rank 0 only."""
    note: Note = _ignore
    """Takes the name and the text of something unusual; called by rank 0 only."""
    report: Callable[[Mapping[str, Any]], None] = _ignore
    """Takes progress; called by every rank, equally often."""
    halt: Halt | None = None
    """Asked whether to end early; called by rank 0 only."""
    ending: Callable[[], BaseException | None] = lambda: None
    """Asked after each step: what ends the run, whose state is then saved; of one worker alone."""
    asked: Callable[[], bool] = lambda: False
    """Asked after each step whether the workers are about to be ended; by rank 0 only."""
    answered: Callable[[], None] = _ignore
    """Hears that the state was saved for that."""
    saved: Callable[[], None] = _ignore
    """Hears of each checkpoint that is on the disk, in another thread; called by rank 0 only."""
    fetch: Callable[[Path], None] = _ignore
    """Sees to it that the checkpoint at a path, which rank 0 has, is there; called by all ranks."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.workers.rank == 0

    def at_rung(self, step: int) -> bool:
        """Whether the run may end at a step that is not its last."""
        return self.halt is not None and step in self.halt.rungs


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended."""

    step: int
    """Training steps taken."""
    seconds: float
    """Wall-clock seconds of the loop, evaluation included, over all attempts."""
    metrics: Metrics
    """The last evaluation."""
    stopped: str | None = None
    """Why it ended before its last step, if it did."""
    gpu_seconds: float = 0.0
    """The seconds of each of its processes on a GPU, added."""

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        metrics = {name: list(measurement) for name, measurement in self.metrics.items()}
        write_whole(path, json.dumps(asdict(self) | {"metrics": metrics}))

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """Reads what ``save`` wrote."""
        data = json.loads(path.read_text())
        data["metrics"] = {name: Measurement(*pair) for name, pair in data["metrics"].items()}
        return cls(**data)


def train(experiment: Experiment, session: Session) -> Summary:
    """Trains to the experiment's last step, from the newest intact checkpoint in the run's folder.

    Raises NonFiniteLoss on every worker when a loss was not finite, and WorkersDiffer when they do
    not train the same thing; checkpoints stay as they were. OSError where one cannot be written,
    ValueError where steps are not computed as they should be. Afterwards nothing of the run is in
    memory, so that one process can train many.
    """
    try:
        return _train(experiment, session)
    finally:
        # matplotlib's savefig keeps its callers' frames, with all that these hold, in a cycle.
        gc.collect()


def _train(experiment: Experiment, session: Session) -> Summary:
    clock = Clock(session.directory, session.workers)
    trainer = _prepare(experiment, session)
    if session.leads:
        session.directory.mkdir(parents=True, exist_ok=True)
    folder = checkpoints(experiment, session.directory)
    restore(trainer, folder, session.note, session.fetch)
    _agree(trainer)
    if trainer.step < experiment.steps:
        self_test(trainer)
    metrics: Metrics = {}
    stopped: str | None = None
    if session.at_rung(trainer.step):  # it died before it knew the answer, or told it
        metrics, stopped = _asked(trainer, session, lambda: evaluate(trainer))
    with Saver(folder, session.workers.described(), session.saved) as saver:
        first = trainer.step + 1
        while trainer.step < experiment.steps and stopped is None:
            trainer.train_step()
            if trainer.step == first:
                _agree(trainer)
            after = partial(_after_step, trainer, session, saver, clock)
            if session.at_rung(trainer.step):
                metrics, stopped = _asked(trainer, session, after)
            else:
                metrics = after() or metrics
            _end_if_asked(trainer, session, saver, clock)
            if session.leads and session.asked():
                _keep(trainer, saver, clock)
                session.answered()
    if not metrics:  # everything was done when the run was resumed
        metrics = evaluate(trainer)
    spent = clock.spent()._asdict()
    summary = Summary(step=trainer.step, metrics=metrics, stopped=stopped, **spent)
    if session.leads:
        clock.save()
        summary.save(session.directory / "summary.json")
    return summary


def _end_if_asked(trainer: Trainer, session: Session, saver: Saver, clock: Clock) -> None:
    """Raises what ends the run, once its state is on the disk."""
    end = session.ending()
    if end is None or trainer.step == trainer.experiment.steps:
        return
    if trainer.step % trainer.experiment.checkpoint.every:  # otherwise it is being saved
        saver.save(trainer.experiment, trainer.state_dict(), trainer.collect())
    saver.drain()
    clock.save()
    raise end


def _keep(trainer: Trainer, saver: Saver, clock: Clock) -> None:
    """Saves the state that all workers share, by one of them alone; unless it is not finite."""
    due = trainer.step % trainer.experiment.checkpoint.every == 0  # it is being saved
    if not due and all(p.isfinite().all() for p in trainer.net.parameters()):
        saver.save(trainer.experiment, trainer.state_dict(), {})
    saver.drain()
    clock.save()


def _asked(
    trainer: Trainer, session: Session, measure: Callable[[], Metrics]
) -> tuple[Metrics, str | None]:
    """What was measured at a rung, and why the run ends there, if it does, on all workers."""
    start, why = time.monotonic(), None
    metrics = measure()
    if session.leads and session.halt is not None:
        due = trainer.step % trainer.experiment.evaluation.every == 0
        why = session.halt(trainer.step, metrics, 0.0 if due else time.monotonic() - start)
    return metrics, trainer.workers.gather(why or "")[0] or None


def _prepare(experiment: Experiment, session: Session) -> Trainer:
    """A trainer at step 0, once all workers are known to train the same experiment."""
    workers = session.workers
    require(experiment.compute, workers.device)
    dataset = experiment.data.load("train")
    if workers.world > 1:
        agreement.agree(workers, agreement.setting(experiment, dataset))
    if isinstance(dataset, ImageSet):
        dataset = dataset.to(workers.device)
    return Trainer(experiment, dataset, workers, session.wrap)


def _agree(trainer: Trainer) -> None:
    """Raises WorkersDiffer unless all workers hold the same state."""
    if trainer.workers.world > 1:
        agreement.agree(trainer.workers, agreement.state(trainer.state_dict()))


def _after_step(trainer: Trainer, session: Session, saver: Saver, clock: Clock) -> Metrics:
    """Logs, evaluates, saves and reports what is due after a step; returns what was measured."""
    experiment, step = trainer.experiment, trainer.step
    last = step == experiment.steps
    log_due = last or step % experiment.log_every == 0
    evaluation_due = last or step % experiment.evaluation.every == 0 or session.at_rung(step)
    probe_due = experiment.probe is not None and step % experiment.probe.every == 0
    checkpoint_due = last or step % experiment.checkpoint.every == 0
    if not (log_due or evaluation_due or checkpoint_due or probe_due):
        return {}
    figures = trainer.collect()  # raises before anything is saved
    if log_due:
        figures |= _progress(trainer, clock)
    metrics = evaluate(trainer) if evaluation_due else {}
    if experiment.probe is not None and probe_due:
        metrics |= _probe(trainer, session, experiment.probe)
    figures |= {name: measurement.value for name, measurement in metrics.items()}
    figures |= {f"{name}_se": measurement.error for name, measurement in metrics.items()}
    if session.leads:
        _note_lost(metrics, step, session.note)
        _write(trainer, session, figures, evaluation_due)
        clock.save()
        if checkpoint_due:  # after logging: what a restarted worker repeats is not sent twice
            saver.save(experiment, trainer.state_dict(), figures)
        if last:
            saver.drain()  # who hears of the last step finds its checkpoint
    session.report({"step": step, **figures})
    return metrics


def _note_lost(metrics: Metrics, step: int, note: Note) -> None:
    """Says which figures of an evaluation are not finite; such a checkpoint is never the best."""
    values = {n: m.value for n, m in metrics.items() if n.startswith("eval/")}
    if lost := [f"{n} is {v}" for n, v in values.items() if not math.isfinite(v)]:
        note("evaluation.not_finite", f"step {step} is never the best: {', '.join(lost)}")


def _progress(trainer: Trainer, clock: Clock) -> dict[str, float]:
    spent = clock.spent()
    on_gpus = {"time/gpu_seconds": spent.gpu_seconds} if spent.gpu_seconds else {}
    return {
        "grad/norm": trainer.gradient_norm(),
        **_beta(trainer),
        "schedule/lr": trainer.optimiser.param_groups[0]["lr"],
        "time/seconds": spent.seconds,
        **on_gpus,
        "time/workers": trainer.workers.world,
        **_waiting(trainer),
    }


def _waiting(trainer: Trainer) -> dict[str, float]:
    """The share of the time since the last log that went into waiting for data from disk."""
    data = trainer.dataset
    return {"time/waiting": data.waiting_share()} if isinstance(data, StreamedSet) else {}


def _beta(trainer: Trainer) -> dict[str, float]:
    """beta of the last step; if it depends on t, at the times of the loss variance too."""
    t = torch.tensor(TIMES, device=trainer.workers.device)
    beta = trainer.objective.beta(trainer.step - 1, t)
    if not isinstance(beta, torch.Tensor):
        return {"schedule/beta": beta}
    at = {f"schedule/beta_t{time}": b for time, b in zip(TIMES, beta.tolist(), strict=True)}
    return {"schedule/beta": float(beta.mean())} | at


def _probe(trainer: Trainer, session: Session, plan: Probe) -> Metrics:
    """Measures a landscape on all workers; rank 0 keeps its file and its plot."""
    landscape = trainer.probe(plan)
    if session.leads:
        path = session.directory / "landscape" / f"step_{trainer.step:08d}.png"
        save_landscape(landscape, path.with_suffix(".json"))
        plot_landscape(landscape, path)
        session.picture(path, trainer.step)
    return {name: Measurement(*estimate) for name, estimate in landscape.estimates().items()}


def _write(
    trainer: Trainer, session: Session, figures: Mapping[str, float], evaluated: bool
) -> None:
    experiment, step, shape = trainer.experiment, trainer.step, trainer.dataset.shape
    session.directory.stat()  # raises where its file system is gone: no picture makes it anew
    if evaluated:
        path = session.directory / "samples" / f"step_{step:08d}.png"
        generate = generate_from(as_sampled(trainer.ema), experiment, shape, session.workers.device)
        save_picture(generate(pictured(shape)).cpu(), path)
        session.picture(path, step)
    session.log(figures, step)
