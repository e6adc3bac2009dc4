"""Keeps a search's Optuna study in step with the records of its trials."""

import math
from collections.abc import Collection
from typing import Any

import optuna

from vamf.cluster.search.halving import delete_rung_records
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.space import Space
from vamf.cluster.search.study_database import database
from vamf.cluster.search.trials import Trial, checked, load_trials, trial_folder
from vamf.compat.mlflow_view import run_path
from vamf.compat.optuna import describe, requeue
from vamf.rng import seed_of
from vamf.run_layout import FAILED_TRIAL, RUN, TRIAL
from vamf.tracking import Run, page_address

BETA_STAR = "beta_star/gradient/mse"
"""The metric with the beta of the lowest gradient error in a trial's last landscape, if any."""

DRIVER = "driver"
"""A trial's user attribute with the name of the driver that started it last."""


def open_study(sweep: Sweep) -> optuna.Study:
    """The sweep's study, which must exist."""
    return optuna.load_study(study_name=sweep.name, storage=database(sweep))


def sampler(space: Space, sweep: Sweep, joined: str = "") -> optuna.samplers.BaseSampler:
    """The space's sampler, with the experiment's seed; with another seed once there are trials.

    With the same seed a resumed search would draw the same points again, and so would a driver that
    has joined others, whose name is ``joined``.
    """
    seed = sweep.experiment.seed
    first, drawn = space.sampler(seed), _length(sweep)
    if drawn == 0 and not joined:
        return first
    if isinstance(first, optuna.samplers.QMCSampler):
        # The seed selects the sequence, and the study's length the index in it. Only the
        # independent draws, which it makes before a trial has ended, are reseeded.
        first.reseed_rng()
        return first
    key = ("joined", seed, drawn, joined) if joined else ("resumed", seed, drawn)
    return space.sampler(seed_of(*key) % 2**32)  # NumPy takes 32 bits


def _length(sweep: Sweep) -> int:
    """The number of trials in the study, in any state; 0 if there is no study."""
    studies = optuna.get_all_study_summaries(database(sweep))
    return next((study.n_trials for study in studies if study.study_name == sweep.name), 0)


def record_results(sweep: Sweep, others: Collection[str] = ()) -> list[int]:
    """Records trials that have ended in the study; returns the numbers of those without a result.

    A finished trial is completed with its objectives, one that ended early becomes pruned, and one
    that failed becomes failed. Leaves the trials of the drivers ``others`` to them.
    """
    if sweep.name not in optuna.get_all_study_names(database(sweep)):
        return []
    study = open_study(sweep)
    records = {trial.number: trial for trial in load_trials(sweep.directory)}
    started = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    running = [t.number for t in started if t.user_attrs.get(DRIVER) not in others]
    for number in running:
        if number in records:
            _tell(study, sweep, records[number])
    return [number for number in running if number not in records]


def record_result(sweep: Sweep, number: int) -> None:
    """Records a trial that has just ended in the study, unless that is done or it has no result."""
    study, folder = open_study(sweep), trial_folder(sweep.directory, number)
    finished = study.get_trials(deepcopy=False)[number].state.is_finished()
    if not finished and (folder / TRIAL).exists():
        _tell(study, sweep, Trial.load(folder))


def _tell(study: optuna.Study, sweep: Sweep, record: Trial) -> None:
    record = checked(record, sweep.objectives)
    describe(database(sweep), sweep.name, record.number, _attributes(sweep, record))
    if record.complete:
        study.tell(record.number, [record.metrics[name].value for name in sweep.objectives])
        return
    states = optuna.trial.TrialState
    state = states.FAIL if record.stopped is None else states.PRUNED
    study.tell(record.number, state=state)


def _attributes(sweep: Sweep, record: Trial) -> dict[str, Any]:
    """What Optuna's dashboard shows of a trial: links to its runs, its errors and its time.

    Optuna takes none of a trial that has ended, and so none of seeds that are added later.
    """
    files = sorted(trial_folder(sweep.directory, record.number).glob(f"*/{RUN}"))
    errors = {
        f"{name} ±": m.error for name, m in record.metrics.items() if name.startswith("eval/")
    }
    ended = {"error": record.error, "stopped": record.stopped}
    return {
        **{file.parent.name: _page(Run.load(file, sweep.parent.uri)) for file in files},
        "label": record.label,
        **{name: error for name, error in errors.items() if math.isfinite(error)},
        "seconds": round(record.seconds, 1),
        **{name: why for name, why in ended.items() if why is not None},
    }


def _page(run: Run) -> str:
    return page_address(run.uri, run_path(run.experiment_id, run.run_id))


def requeue_unfinished(sweep: Sweep, others: Collection[str] = ()) -> list[int]:
    """Records trials that have ended, and queues the others to be resumed; returns their numbers.

    They keep their numbers and their parameters. Leaves the trials of the drivers ``others`` to
    them.
    """
    left = record_results(sweep, others)
    requeue(database(sweep), sweep.name, left)
    return left


def retry_failed(sweep: Sweep) -> list[int]:
    """Queues the points of all failed trials as new trials; returns the old numbers.

    The records of the failed trials are renamed and not counted any more.
    """
    trials = load_trials(sweep.directory)
    failed = [t.number for t in trials if checked(t, sweep.objectives).error is not None]
    for number in failed:
        study, folder = open_study(sweep), trial_folder(sweep.directory, number)
        study.enqueue_trial(study.get_trials(deepcopy=False)[number].params)
        delete_rung_records(folder)
        (folder / TRIAL).rename(folder / FAILED_TRIAL)
    return failed


def follow_landscape(space: Space, sweep: Sweep, number: int) -> None:
    """Queues beta* of the landscape of one of the space's first points, unless it has been tried.

    Does nothing in a space without ``constant``.
    """
    folder, constant = trial_folder(sweep.directory, number), getattr(space, "constant", None)
    if constant is None or number >= len(space.POINTS) or not (folder / TRIAL).exists():
        return
    star = Trial.load(folder).metrics.get(BETA_STAR)
    if star is None or not 0 <= star.value <= 1:  # NaN where nothing was measured
        return
    point = dict(constant(round(star.value, 2)))
    open_study(sweep).enqueue_trial(point, skip_if_exists=True)
