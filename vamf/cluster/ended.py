"""How a trial ended where it could not say so itself, and one line about it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vamf.cluster import connect
from vamf.cluster.halving import forget
from vamf.cluster.holding import StillRunning
from vamf.cluster.launch import RUN, close_orphan
from vamf.cluster.study import BETA_STAR, settle_one
from vamf.cluster.sweep import Sweep
from vamf.cluster.train import SUMMARY
from vamf.cluster.trials import TRIAL, Trial, judged, trial_folder
from vamf.files import write_whole
from vamf.redact import redacted
from vamf.tracking import NotCreated
from vamf.training.spent import spent_in

UNTRIED = (NotCreated, StillRunning)
"""What keeps a trial from beginning, and is not its fault: it has no result, not even a failure."""

POSTPONED = "postponed"
"""The file in a trial's folder that says why it has no result."""


def postpone(folder: Path, error: BaseException) -> None:
    """Notes why a trial has no result, for the search's own process."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / POSTPONED, redacted(str(error)))


def postponed(folder: Path) -> str | None:
    """Why a trial has no result; None if it has one, or its process did not say."""
    path = folder / POSTPONED
    return path.read_text() if path.exists() and not (folder / TRIAL).exists() else None


def give_up(sweep: Sweep, config: Mapping[str, Any]) -> None:
    """Records a trial whose process died too often, and ends its MLflow run."""
    number, settings = config["number"], dict(config["settings"])
    folder, times = trial_folder(sweep.directory, number), sweep.scaling.max_failures
    error = f"its process died more than {times} times; logs in {connect.log_folder()}"
    label = sweep.experiment.override(settings).beta.label
    forget(folder)
    for marker in folder.glob(f"*/{RUN}"):
        if not (marker.parent / SUMMARY).exists():  # a seed that was trained to its end
            close_orphan(marker, sweep.parent.uri, "FAILED", error)
    record = Trial(number=number, settings=settings, label=label, error=error)
    replace(record, **spent_in(folder.glob("*"))._asdict()).save(folder)
    settle_one(sweep, number)


def describe(sweep: Sweep, number: int) -> str:
    """One line on how a trial ended."""
    folder = trial_folder(sweep.directory, number)
    if (why := postponed(folder)) is not None:
        return f"trial {number}  has no result yet: {why}"
    trial = judged(Trial.load(folder), sweep.objectives)
    if trial.error:
        return f"trial {number}  {trial.label}  failed: {trial.error}"
    if trial.stopped:
        return f"trial {number}  {trial.label}  stopped: {trial.stopped}"
    figures = "  ".join(
        f"{name.removeprefix('eval/')} {trial.metrics[name]}" for name in sweep.objectives
    )
    star = f"  beta* {trial.metrics[BETA_STAR]}" if BETA_STAR in trial.metrics else ""
    return f"trial {number}  {trial.label}  {figures}{star}  {trial.seconds:.0f} s"
