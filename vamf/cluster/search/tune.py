"""Runs trials that Optuna suggests by Ray Tune, which only this module imports."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from vamf import output
from vamf.cluster.ray.capacity import runs_that_fit, sizes
from vamf.cluster.ray.capacity_watch import CapacityWatch
from vamf.cluster.ray.log_filters import quiet_optuna
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.budget import BudgetClock
from vamf.cluster.search.halving import ParetoPruner, seconds_at_rungs
from vamf.cluster.search.mlflow_outage import send_unsent
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_status import SearchStatus
from vamf.cluster.search.space import Space, points
from vamf.cluster.search.storage_failure import (
    StorageMonitor,
    as_storage_unusable,
    reported_to_the_search,
)
from vamf.cluster.search.study import (
    follow_landscape,
    open_study,
    record_result,
    record_results,
    sampler,
)
from vamf.cluster.search.trial_end import (
    BUDGET_ENDED,
    NOT_STARTED,
    describe,
    described,
    postpone,
    record_failure,
)
from vamf.cluster.search.trials import (
    Trial,
    checked,
    load_trials,
    not_finite,
    over_seeds,
    trial_folder,
)
from vamf.cluster.train.progress import SampleRate, step_bar
from vamf.cluster.train.start_delay import WaitingTrials
from vamf.cluster.train.tracked_run import Launch, launch
from vamf.compat import ray as compat
from vamf.errors import NonFiniteLoss, NonFiniteObjective, RunFailed, StorageUnusable
from vamf.output import say
from vamf.redact import redacted
from vamf.run_layout import POSTPONED, RAY, SUMMARY, TRIAL, seed_name
from vamf.tracking import provenance
from vamf.training.elapsed_time import spent_in
from vamf.training.loop import Summary

DRAWN = "vamf.drawn"
"""Where a trial's number and settings are in its configuration, to which Ray Tune adds Optuna's
parameters, whatever their names are."""


@as_storage_unusable()
@quiet_optuna()
def search(space: Space, sweep: Sweep, clock: BudgetClock) -> None:
    """Runs the remaining trials of a sweep; the results are in its study and its trials' files.

    No trial starts after the budget's end. A trial that fails, or has an objective that is not
    finite, does not end the search. One whose process dies is restarted up to
    ``scaling.max_failures`` times, from its checkpoint. Raises KeyboardInterrupt if it is
    interrupted, StorageUnusable if the storage is full or gone.
    """
    storage = optuna.storages.RDBStorage(sweep.storage)
    exists = sweep.name in optuna.get_all_study_names(storage)
    left = None if sweep.trials is None else sweep.trials - len(load_trials(sweep.directory))
    if left is not None and left <= 0:
        return
    metrics = [_objective(index) for index in range(len(sweep.objectives))]
    algorithm = _budgeted(sweep.directory, clock)(
        space=_Numbered(space.space),
        metric=metrics,
        mode=["min"] * len(metrics),
        points_to_evaluate=None if exists else points(space, sweep.experiment),
        sampler=sampler(space, sweep),
        study_name=sweep.name,
        storage=storage,
    )
    open_study(sweep).set_metric_names(list(sweep.objectives))
    total = None if left is None else left * sweep.seeds * sweep.experiment.steps
    chosen = {"search_alg": algorithm, "num_samples": -1 if left is None else left}
    _run(space, sweep, clock, total, chosen, {})
    record_results(sweep)


@as_storage_unusable()
def add_seeds(space: Space, sweep: Sweep, clock: BudgetClock, wanted: Mapping[int, int]) -> None:
    """Trains complete trials with more seeds: ``wanted`` is the number of seeds by trial.

    Their records then hold all seeds. Raises as ``search``.
    """
    from ray import tune

    trials = [trial for trial in load_trials(sweep.directory) if trial.number in wanted]
    chosen = [
        {"number": t.number, "settings": t.settings, "seeds": wanted[t.number]} for t in trials
    ]
    added = {t.number: wanted[t.number] - len(t.seeds) for t in trials}
    total = sum(added.values()) * sweep.experiment.steps
    _run(space, sweep, clock, total, {}, added, param_space={DRAWN: tune.grid_search(chosen)})


def _run(
    space: Space,
    sweep: Sweep,
    clock: BudgetClock,
    total: int | None,
    chosen: Mapping[str, Any],
    added: Mapping[int, int],
    **points: Any,
) -> None:
    """Runs trials by Ray Tune, with a progress bar of ``total`` steps, if they are known.

    ``added`` is the number of new seeds of complete trials, by number.
    """
    from ray import tune

    _quiet_tune()
    resources = trial_resources(sweep.scaling)
    with step_bar(total, scale=True) as bar:
        tune.Tuner(
            tune.with_resources(_run_trial(sweep, clock.end), resources),
            tune_config=tune.TuneConfig(
                max_concurrent_trials=max_concurrent_trials(sweep.scaling),
                reuse_actors=True,
                **chosen,
            ),
            run_config=tune.RunConfig(
                name=f"{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(sweep.directory / RAY),
                failure_config=tune.FailureConfig(max_failures=sweep.scaling.max_failures),
                callbacks=[_progress(space, sweep, bar, added)],
                verbose=0,
            ),
            **points,
        ).fit()


def _budgeted(directory: Path, clock: BudgetClock) -> Any:
    """Ray Tune's search by Optuna, which suggests nothing any more when the budget is used up.

    Ray writes the class, with all that it uses here, to the disk: not a sweep, whose address of
    MLflow may hold a password.
    """
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    before = len(load_trials(directory))

    class BudgetedSearch(OptunaSearch):
        suggested = 0

        def suggest(self, trial_id: str) -> Any:
            trials = load_trials(directory) if clock.budget.limited else []
            why = clock.exhausted(trials, self.suggested - len(trials) + before)
            if why is not None:
                say(f"the budget has no room for another trial: {why}")
                return Searcher.FINISHED
            self.suggested += 1
            return super().suggest(trial_id)

    return BudgetedSearch


def trial_resources(scaling: Scaling) -> dict[str, float]:
    """The resources that Ray Tune reserves for a trial's own process."""
    if scaling.workers == 0:
        return {"CPU": scaling.cpus, "GPU": scaling.gpus or 0}
    # The workers reserve the CPUs; Ray refuses an empty bundle.
    return {"CPU": 0, "memory": 1e6}


def max_concurrent_trials(scaling: Scaling) -> int | None:
    """How many trials fit on the nodes at once; None if Ray Tune can compute it.

    The process of a trial with workers takes no CPU itself: without a limit Ray Tune would start
    all trials at once, and ask Optuna for all points before any result.
    """
    return None if scaling.workers == 0 else max(1, runs_that_fit(scaling, sizes()))


def _objective(index: int) -> str:
    return f"objective_{index}"


@dataclass(frozen=True)
class _Numbered:
    """Draws a trial's settings and its number in the study; Ray pickles it with its state."""

    draw: Callable[[optuna.Trial], Mapping[str, Any]]

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        return {DRAWN: {"number": trial.number, "settings": dict(self.draw(trial))}}


def _run_trial(sweep: Sweep, end: float) -> Any:
    from ray import tune

    variables = provenance.own_variables()

    def run(config: dict[str, Any]) -> None:
        os.environ.update(variables)
        with reported_to_the_search(tune.report):
            run_trial(sweep, **_point(config), end=end)

    return run


def _point(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's number and settings, and its seeds if they are not the search's own."""
    return dict(config[DRAWN])


def run_trial(
    sweep: Sweep,
    number: int,
    settings: Mapping[str, Any],
    seeds: int | None = None,
    end: float = float("inf"),
) -> None:
    """Trains a point with each of its seeds, in a Ray Tune trial, and reports its objectives.

    It continues an earlier attempt; of a trial that is complete it trains the missing seeds. A
    trial that waited for resources until the Unix time ``end``, or cannot start because of its
    surroundings, such as MLflow, writes no record.
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
        if error is not None or runs[-1].stopped is not None:
            break
    whole = [run.metrics for run in runs if run.stopped is None]
    finished = asdict(trial) | {
        **spent_in(folder.glob("*"))._asdict(),
        "metrics": over_seeds(whole) if len(whole) == seeds else {},
        "seeds": [{name: m.value for name, m in run.items()} for run in whole],
        "error": error,
        "stopped": next((run.stopped for run in runs if run.stopped is not None), None),
        "steps": sum(run.step for run in runs),
        "seconds_at_rungs": seconds_at_rungs(sweep.directory, number),
    }
    ended = checked(Trial(**finished), sweep.objectives)  # a mean of seeds may overflow
    ended.save(folder)
    send_unsent(sweep)
    if ended.complete:
        values = [ended.metrics[name].value for name in sweep.objectives]
        tune.report({_objective(index): value for index, value in enumerate(values)})


def _ended_seeds(sweep: Sweep, folder: Path) -> list[Summary]:
    """The runs of a trial that is complete, by seed; none of others."""
    if not (folder / TRIAL).exists() or not (trial := Trial.load(folder)).complete:
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
        sweep=sweep.directory,
        trial=trial.number,
        objectives=sweep.objectives,
        never_ends=trial.baseline,
    )


def _progress(space: Space, sweep: Sweep, bar: Any, added: Mapping[int, int]) -> Any:
    """A Ray Tune callback: updates the progress bar, and prints a line for each trial."""
    from ray import tune

    steps: dict[str, int] = {}
    status, rate = SearchStatus(sweep), SampleRate(sweep.experiment.batch)
    watch, waiting = CapacityWatch(sweep.scaling), WaitingTrials(sweep.directory)
    storage = StorageMonitor(sweep.directory)
    base: Any = compat.progress_callback()

    class Progress(base):  # without one, Ray adds its own, which prints
        def __reduce__(self) -> tuple[Any, ...]:
            # Ray pickles callbacks to the disk, and a terminal cannot be pickled.
            return tune.Callback, ()

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            storage.read_report(result)
            self._move(trial, result.get("steps", result.get("step", 0)))

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            number = _point(trial.config)["number"]
            self._move(trial, added.get(number, sweep.seeds) * sweep.experiment.steps)
            self._line(trial)
            with storage.watched():
                record_result(sweep, number)
                follow_landscape(space, sweep, number)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if compat.times_failed(trial) > sweep.scaling.max_failures and storage.writable():
                with storage.watched():
                    record_failure(sweep, _point(trial.config), compat.raised(trial))
                self._line(trial)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            number = _point(trial.config)["number"]
            if storage.writable():
                error = compat.raised(trial)
                why = "its process died" if error is None else described(error)
                say(f"trial {number}: {why}; it resumes from its checkpoint")

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            storage.require()
            for line in (watch.look(), *waiting.look()):
                if line:
                    say(line)
            running = sum(trial.status == "RUNNING" for trial in trials)
            speed = rate(int(bar.n), time.monotonic())
            bar.set_postfix_str(f"{speed}{', ' * bool(speed)}{status.text(running)}", refresh=False)

        def _move(self, trial: Any, now: int) -> None:
            bar.update(max(now - steps.get(trial.trial_id, 0), 0))
            steps[trial.trial_id] = max(now, steps.get(trial.trial_id, 0))

        def _line(self, trial: Any) -> None:
            number = _point(trial.config)["number"]
            try:
                say(describe(sweep, number))
                status.read()
            except (OSError, ValueError) as error:  # an error in printing must not end the search
                say(f"trial {number}: its record could not be read: {error}")

    return Progress()


def _quiet_tune() -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the metrics are in MLflow
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # progress lacks objectives
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # a traceback for a lost process
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would record trials as failed
