"""The training loop: the same in a Ray Train worker, in a Ray Tune trial and in a test."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vamf.data.dataset import ImageSet
from vamf.data.streaming import StreamedSet
from vamf.diagnostics.probe import Probe
from vamf.diagnostics.variance import TIMES
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.metrics.distances import Measurement
from vamf.training.checkpoint import CheckpointFolder
from vamf.training.evaluation import Metrics, evaluate, generate_from
from vamf.training.landscapes import plot_landscape, save_landscape
from vamf.training.pictures import pictured, save_picture
from vamf.training.trainer import Trainer


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where a loop runs and whom it tells: all that differs between its hosts."""

    directory: Path
    """The run's folder, on storage that all workers see."""
    workers: Workers = field(default_factory=Workers)
    """This process among the run's workers."""
    wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective
    """Makes the objective a distributed one."""
    log: Callable[[Mapping[str, float], int], None] = _ignore
    """Takes figures and their step; called by rank 0 only."""
    picture: Callable[[Path, int], None] = _ignore
    """Takes a picture file and its step; called by rank 0 only."""
    report: Callable[[Mapping[str, Any]], None] = _ignore
    """Takes progress; called by every rank, equally often."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.workers.rank == 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended."""

    step: int
    """Training steps taken."""
    seconds: float
    """Wall-clock seconds of the loop in the process that finished it, evaluation included."""
    metrics: Metrics
    """The last evaluation."""

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        metrics = {name: list(measurement) for name, measurement in self.metrics.items()}
        aside = path.with_suffix(".partial")
        aside.write_text(
            json.dumps({"step": self.step, "seconds": self.seconds, "metrics": metrics})
        )
        aside.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """Reads what ``save`` wrote."""
        data = json.loads(path.read_text())
        data["metrics"] = {name: Measurement(*pair) for name, pair in data["metrics"].items()}
        return cls(**data)


def checkpoints(experiment: Experiment, directory: Path) -> CheckpointFolder:
    """The checkpoints of the run in ``directory``."""
    return CheckpointFolder(
        path=directory / "checkpoints",
        keep=experiment.checkpoint.keep,
        best_by=f"eval/{experiment.evaluation.distance.key}",
    )


def train(experiment: Experiment, session: Session) -> Summary:
    """Trains to the experiment's last step, from the latest checkpoint in the run's folder if any.

    Raises NonFiniteLoss on every worker when a loss was not finite; checkpoints stay as they were.
    """
    start = time.monotonic()
    dataset = experiment.data.load("train")
    if isinstance(dataset, ImageSet):
        dataset = dataset.to(session.workers.device)
    trainer = Trainer(experiment, dataset, session.workers, session.wrap)
    folder = checkpoints(experiment, session.directory)
    if (latest := folder.latest()) is not None:
        trainer.load_state_dict(latest.load_for(experiment, session.workers.device))
    metrics: Metrics = {}
    while trainer.step < experiment.steps:
        trainer.train_step()
        metrics = _after_step(trainer, session, folder, start) or metrics
    if not metrics:  # everything was done when the run was resumed
        metrics = evaluate(trainer)
    summary = Summary(step=trainer.step, seconds=time.monotonic() - start, metrics=metrics)
    if session.leads:
        summary.save(session.directory / "summary.json")
    return summary


def _after_step(
    trainer: Trainer, session: Session, folder: CheckpointFolder, start: float
) -> Metrics:
    """Logs, evaluates, saves and reports what is due after a step; returns what was measured."""
    experiment, step = trainer.experiment, trainer.step
    last = step == experiment.steps
    log_due = last or step % experiment.log_every == 0
    evaluation_due = last or step % experiment.evaluation.every == 0
    probe_due = experiment.probe is not None and step % experiment.probe.every == 0
    checkpoint_due = last or step % experiment.checkpoint.every == 0
    if not (log_due or evaluation_due or checkpoint_due or probe_due):
        return {}
    figures = trainer.collect()  # raises before anything is saved
    if log_due:
        figures |= _progress(trainer, start)
    metrics = evaluate(trainer) if evaluation_due else {}
    if experiment.probe is not None and probe_due:
        metrics |= _probe(trainer, session, experiment.probe)
    figures |= {name: measurement.value for name, measurement in metrics.items()}
    figures |= {f"{name}_se": measurement.error for name, measurement in metrics.items()}
    if session.leads:
        _write(trainer, session, folder, figures, evaluation_due, checkpoint_due)
    session.report({"step": step, **figures})
    return metrics


def _progress(trainer: Trainer, start: float) -> dict[str, float]:
    return {
        "grad/norm": trainer.gradient_norm(),
        **_beta(trainer),
        "schedule/lr": trainer.optimiser.param_groups[0]["lr"],
        "time/seconds": time.monotonic() - start,
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
    trainer: Trainer,
    session: Session,
    folder: CheckpointFolder,
    figures: Mapping[str, float],
    evaluated: bool,
    save: bool,
) -> None:
    experiment, step, shape = trainer.experiment, trainer.step, trainer.dataset.shape
    if evaluated:
        path = session.directory / "samples" / f"step_{step:08d}.png"
        generate = generate_from(trainer.ema, experiment, shape, session.workers.device)
        save_picture(generate(pictured(shape)).cpu(), path)
        session.picture(path, step)
    session.log(figures, step)  # before saving: what a restarted worker repeats is not sent twice
    if save:
        folder.save(experiment, trainer.state_dict(), figures)
