"""Trains the point of a trial in its process, with each seed, and reports its objectives."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vamf import output
from vamf.cluster.search.halving import ParetoPruner, seconds_at_rungs
from vamf.cluster.search.mlflow_outage import send_unsent
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trial_end import BUDGET_ENDED, NOT_STARTED, complete_record, keep, postpone
from vamf.cluster.search.trials import Trial, checked, not_finite, over_seeds, trial_folder
from vamf.cluster.train.tracked_run import Launch, launch
from vamf.errors import NonFiniteLoss, NonFiniteObjective, RunFailed, StorageUnusable
from vamf.redact import redacted
from vamf.run_layout import POSTPONED, SUMMARY, seed_name, trial_name
from vamf.training.elapsed_time import spent_in
from vamf.training.loop import Summary


def objective_name(index: int) -> str:
    """The name under which a trial reports the objective with this index."""
    return f"objective_{index}"


def run_trial(
    sweep: Sweep,
    number: int,
    settings: Mapping[str, Any],
    seeds: int | None = None,
    end: float = float("inf"),
) -> None:
    """Trains a point with each of its seeds, in a Ray Tune trial, and reports its objectives.

    It continues an earlier attempt; of a trial that is complete it trains the missing seeds, and
    keeps its record if the workers of one are lost. A trial that waited for resources until the
    Unix time ``end``, or cannot start because of its surroundings, such as MLflow, writes none.
    """
    from ray import tune

    output.escape_unencodable()
    seeds = sweep.seeds if seeds is None else seeds
    experiment = sweep.experiment.override(settings)
    trial = Trial(
        number=number,
        settings=dict(settings),
        label=sweep.label_of(settings),
        baseline=sweep.is_baseline(settings),
    )
    folder = trial_folder(sweep.directory, number)
    (folder / POSTPONED).unlink(missing_ok=True)
    if time.time() > end:
        postpone(folder, BUDGET_ENDED)
        return
    runs = _ended_seeds(sweep, folder)
    error: str | None = None
    before = len(runs)
    for index in range(before, seeds):
        try:
            runs.append(_run_seed(sweep, trial, index, (index - before) * experiment.steps))
        except NOT_STARTED as failure:
            postpone(folder, failure)
            return
        except StorageUnusable:  # no result
            raise
        except (NonFiniteLoss, NonFiniteObjective, RunFailed, ValueError) as failure:
            error = redacted(f"seed {experiment.seed + index}: {failure}")
            if before and isinstance(failure, RunFailed):  # it says nothing about the point
                keep(folder, Trial.load(folder), error)
                return
        if error is not None or runs[-1].stopped is not None:
            break
    ended = _record(sweep, trial, runs, seeds, error)
    ended.save(folder)
    send_unsent(sweep)
    if ended.complete:
        values = [ended.metrics[name].value for name in sweep.objectives]
        tune.report({objective_name(index): value for index, value in enumerate(values)})


def _record(
    sweep: Sweep, trial: Trial, runs: Sequence[Summary], seeds: int, error: str | None
) -> Trial:
    """The record of a trial of so many seeds, of which these ended."""
    folder = trial_folder(sweep.directory, trial.number)
    whole = [run.metrics for run in runs if run.stopped is None]
    finished = asdict(trial) | {
        **spent_in(folder.glob("*"))._asdict(),
        "metrics": over_seeds(whole) if len(whole) == seeds else {},
        "seeds": [{name: m.value for name, m in run.items()} for run in whole],
        "error": error,
        "stopped": next((run.stopped for run in runs if run.stopped is not None), None),
        "steps": sum(run.step for run in runs),
        "seconds_at_rungs": seconds_at_rungs(sweep.location, trial.number),
    }
    return checked(Trial(**finished), sweep.objectives)  # a mean of seeds may overflow


def _ended_seeds(sweep: Sweep, folder: Path) -> list[Summary]:
    """The runs of a trial that is complete, by seed; none of others."""
    if (trial := complete_record(folder, sweep.objectives)) is None:
        return []
    first = sweep.experiment.seed
    names = [seed_name(first + index) for index in range(len(trial.seeds))]
    return [Summary.load(folder / name / SUMMARY) for name in names]


def _run_seed(sweep: Sweep, trial: Trial, index: int, before: int) -> Summary:
    """Trains a point with one seed; ``before`` is the number of steps of the seeds before it."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    seed = sweep.experiment.seed + index
    experiment = sweep.experiment.override({**trial.settings, "seed": seed})
    suffix = f" seed {seed}" if sweep.seeds > 1 or index else ""
    start = Launch(
        directory=trial_folder(sweep.directory, trial.number) / seed_name(seed),
        store=sweep.store and sweep.store / trial_name(trial.number) / seed_name(seed),
        uri=sweep.parent.uri,
        name=f"t{trial.number:02d} {trial.label.replace('β', 'beta')}{suffix}",
        preset=sweep.preset,
        parent=sweep.parent,
        tags={"sweep": sweep.name, "trial": str(trial.number)},
        varied=tuple(trial.settings),
    )
    return launch(
        experiment,
        start,
        sweep.scaling,
        check=lambda summary: _require_finite(summary, sweep.objectives),
        report=lambda progress: tune.report({"steps": before + progress["step"]}),
        callbacks=[TuneReportCallback()] if sweep.scaling.workers else [],
        early_stop=_pruner(sweep, trial) if index == 0 and sweep.halving.rungs else None,
    )


def _require_finite(summary: Summary, objectives: Sequence[str]) -> None:
    """Raises NonFiniteObjective if a run that came to its end cannot be compared."""
    why = not_finite(summary.metrics, objectives) if summary.stopped is None else None
    if why is not None:
        raise NonFiniteObjective(why)


def _pruner(sweep: Sweep, trial: Trial) -> ParetoPruner:
    return ParetoPruner(
        halving=sweep.halving,
        sweep=sweep.location,
        trial=trial.number,
        objectives=sweep.objectives,
        never_ends=trial.baseline,
    )
