"""Records trials that could not record their own end, and describes how trials ended."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vamf.cluster.ray import connect
from vamf.cluster.search.halving import delete_rung_records
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import BETA_STAR, record_result
from vamf.cluster.search.trials import Trial, checked, trial_folder
from vamf.cluster.train.tracked_run import close_abandoned
from vamf.errors import NotCreated, StillRunning, first_line
from vamf.files import write_whole
from vamf.redact import redacted
from vamf.run_layout import POSTPONED, RUN, SUMMARY, TRIAL
from vamf.training.elapsed_time import spent_in

NOT_STARTED = (NotCreated, StillRunning)
"""Errors of the surroundings that keep a trial from starting: it has no result, not a failure."""
BUDGET_ENDED = "the search's hours ended before it started"
"""Why a trial that waited for resources has no result, if the search has a budget."""


def postpone(folder: Path, why: BaseException | str) -> None:
    """Writes why a trial, or a seed that is added to one, has no result, for the search."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / POSTPONED, redacted(str(why)))


def postponed(folder: Path) -> str | None:
    """Why a trial has no result; None if it has one, or if no reason was written."""
    path = folder / POSTPONED
    return path.read_text() if path.exists() and not (folder / TRIAL).exists() else None


def complete_record(folder: Path, objectives: Sequence[str]) -> Trial | None:
    """The record of a trial that is complete, None of any other."""
    if not (folder / TRIAL).exists():
        return None
    trial = Trial.load(folder)
    return trial if checked(trial, objectives).complete else None


def keep(folder: Path, trial: Trial, why: str) -> None:
    """Keeps the record of a complete trial that has lost another seed, with the time of that."""
    postpone(folder, why)
    _with_time(folder, trial).save(folder)


def _with_time(folder: Path, trial: Trial) -> Trial:
    return replace(trial, **spent_in(folder.glob("*"))._asdict())


def record_failure(sweep: Sweep, config: Mapping[str, Any], raised: Exception | None) -> None:
    """Records as failed a trial that was restarted too often, and ends its MLflow run.

    A trial that is complete keeps its record: only a seed that was added later is lost. ``raised``
    is the error that it raised last; None if its process died.
    """
    number, settings = config["number"], dict(config["settings"])
    folder, times = trial_folder(sweep.directory, number), sweep.scaling.max_failures
    why = f"its process died more than {times} times" if raised is None else described(raised)
    error = f"{why}; logs in {connect.log_folder()}"
    for run_file in folder.glob(f"*/{RUN}"):
        if not (run_file.parent / SUMMARY).exists():  # otherwise the seed was trained to its end
            close_abandoned(run_file, sweep.parent.uri, "FAILED", error)
    if (kept := complete_record(folder, sweep.objectives)) is not None:
        keep(folder, kept, error)
        return
    delete_rung_records(folder)
    label, baseline = sweep.label_of(settings), sweep.is_baseline(settings)
    record = Trial(number=number, settings=settings, label=label, baseline=baseline, error=error)
    _with_time(folder, record).save(folder)
    record_result(sweep, number)


def described(error: Exception) -> str:
    """One line on an error that a trial did not expect, without credentials."""
    return redacted(f"{type(error).__name__}: {first_line(error)}")


def describe(sweep: Sweep, number: int) -> str:
    """One line on how a trial ended."""
    folder = trial_folder(sweep.directory, number)
    if (why := postponed(folder)) is not None:
        return f"trial {number}  has no result yet: {why}"
    trial = checked(Trial.load(folder), sweep.objectives)
    if trial.error:
        return f"trial {number}  {trial.label}  failed: {trial.error}"
    if trial.stopped:
        return f"trial {number}  {trial.label}  stopped: {trial.stopped}"
    if (folder / POSTPONED).exists():
        why = (folder / POSTPONED).read_text()
        return f"trial {number}  {trial.label}  got no more seeds: {why}"
    values = "  ".join(
        f"{name.removeprefix('eval/')} {trial.metrics[name]}" for name in sweep.objectives
    )
    star = f"  beta* {trial.metrics[BETA_STAR]}" if BETA_STAR in trial.metrics else ""
    return f"trial {number}  {trial.label}  {values}{star}  {trial.seconds:.0f} s"
