"""Runs trials that Optuna suggests by Ray Tune."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import optuna

from vamf.cluster.ray.capacity import runs_that_fit, sizes
from vamf.cluster.ray.log_filters import quiet_optuna
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search.admission import ALL_TAKEN, Admission
from vamf.cluster.search.budget import BudgetClock
from vamf.cluster.search.drivers import Driver, turn
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.search_copy import trial_copy
from vamf.cluster.search.search_monitor import SearchMonitor
from vamf.cluster.search.space import Space, points
from vamf.cluster.search.storage_failure import as_storage_unusable, reported_to_the_search
from vamf.cluster.search.study import DRIVER, open_study, record_results, sampler
from vamf.cluster.search.study_database import OWNER, database, require_own
from vamf.cluster.search.trial_runner import objective_name, run_trial
from vamf.cluster.search.trials import load_trials
from vamf.cluster.train.progress import step_bar
from vamf.compat import ray as compat
from vamf.output import say
from vamf.run_layout import RAY
from vamf.tracking import provenance

DRAWN = "vamf.drawn"
"""Where a trial's number and settings are in its configuration, to which Ray Tune adds Optuna's
parameters, whatever their names are."""


@as_storage_unusable()
@quiet_optuna()
def search(space: Space, sweep: Sweep, clock: BudgetClock, driver: Driver) -> None:
    """Runs the remaining trials of a sweep; the results are in its study and its trials' files.

    Other drivers may take some of them. No trial starts after the budget's end. A trial that fails,
    or has an objective that is not finite, does not end the search. One whose process dies is
    restarted up to ``scaling.max_failures`` times, from its checkpoint. Raises KeyboardInterrupt if
    it is interrupted, StorageUnusable if the storage is full or gone.
    """
    left = None if sweep.trials is None else sweep.trials - len(load_trials(sweep.directory))
    with turn(sweep.directory):
        require_own(sweep)
        if Admission.of(sweep, clock).refusal() == ALL_TAKEN:
            return
        algorithm = _algorithm(space, sweep, clock, driver)
    total = None if left is None else left * sweep.seeds * sweep.experiment.steps
    with step_bar(total, scale=True) as bar:
        chosen = {"search_alg": algorithm, "num_samples": -1}
        _tuner(sweep, clock.end, SearchMonitor(space, sweep, bar), chosen).fit()
    with turn(sweep.directory):
        record_results(sweep, driver.others())


def _algorithm(space: Space, sweep: Sweep, clock: BudgetClock, driver: Driver) -> Any:
    """What suggests trials to Ray Tune; creates the study if there is none."""
    exists = sweep.name in optuna.get_all_study_names(database(sweep))
    storage = database(sweep)  # opened: there is a file now
    metrics = [objective_name(index) for index in range(len(sweep.objectives))]
    algorithm = _admitted(Admission(sweep.directory, sweep.name, storage, sweep.trials, clock))(
        space=_Numbered(space.space, driver.name),
        metric=metrics,
        mode=["min"] * len(metrics),
        points_to_evaluate=None if exists else points(space, sweep.experiment),
        sampler=sampler(space, sweep, driver.name if driver.joined else ""),
        study_name=sweep.name,
        storage=storage,
    )
    study = open_study(sweep)
    study.set_metric_names(list(sweep.objectives))
    study.set_user_attr(OWNER, sweep.parent.run_id)
    return algorithm


@as_storage_unusable()
def add_seeds(space: Space, sweep: Sweep, clock: BudgetClock, wanted: Mapping[int, int]) -> None:
    """Trains complete trials with more seeds: ``wanted`` is the number of seeds by trial.

    Their records then hold all seeds. No trial starts from when one seed would end after the
    budget's end. Raises as ``search``.
    """
    from ray import tune

    known = load_trials(sweep.directory)
    trials = [trial for trial in known if trial.number in wanted]
    chosen = [
        {"number": t.number, "settings": t.settings, "seeds": wanted[t.number]} for t in trials
    ]
    added = {t.number: wanted[t.number] - len(t.seeds) for t in trials}
    with step_bar(sum(added.values()) * sweep.experiment.steps, scale=True) as bar:
        monitor = SearchMonitor(space, sweep, bar, added)
        points = {DRAWN: tune.grid_search(chosen)}
        _tuner(sweep, clock.last_start(known), monitor, {}, param_space=points).fit()


def _tuner(
    sweep: Sweep, end: float, monitor: SearchMonitor, chosen: Mapping[str, Any], **points: Any
) -> Any:
    """A Ray tuner of trials, of which none starts after the Unix time ``end``."""
    from ray import tune

    _quiet_tune()
    return tune.Tuner(
        tune.with_resources(_trainable(sweep, end), trial_resources(sweep.scaling)),
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent_trials(sweep.scaling),
            reuse_actors=True,
            **chosen,
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:8]}",  # drivers may start at once
            storage_path=str(sweep.directory / RAY),
            failure_config=tune.FailureConfig(max_failures=sweep.scaling.max_failures),
            callbacks=[_callback(monitor, sweep.scaling.max_failures)],
            verbose=0,
        ),
        **points,
    )


def _admitted(admission: Admission) -> Any:
    """Ray Tune's search by Optuna, which suggests nothing any more when no other trial may start.

    Ray writes the class, with all that it uses here, to the disk: not a sweep, whose address of
    MLflow may hold a password.
    """
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    class AdmittedSearch(OptunaSearch):
        def suggest(self, trial_id: str) -> Any:
            with turn(admission.directory):
                why = admission.refusal()
                if why is None:
                    return super().suggest(trial_id)
            if why != ALL_TAKEN:
                say(f"the budget has no room for another trial: {why}")
            return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
            """Nothing: ``record_result`` does it, with what dashboards show of a trial.

            Ray calls this first, and a trial that has ended takes no attributes any more.
            """

    return AdmittedSearch


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


@dataclass(frozen=True)
class _Numbered:
    """Draws a trial's settings and its number in the study; Ray pickles it with its state.

    The trial gets the driver's name: should the driver die, others know that nobody runs it.
    """

    draw: Callable[[optuna.Trial], Mapping[str, Any]]
    driver: str

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        trial.set_user_attr(DRIVER, self.driver)
        return {DRAWN: {"number": trial.number, "settings": dict(self.draw(trial))}}


def _trainable(sweep: Sweep, end: float) -> Any:
    from ray import tune

    variables = provenance.own_variables()
    sweep = replace(sweep, study="")  # trials do without, and its address may hold a password

    def run(config: dict[str, Any]) -> None:
        os.environ.update(variables)
        with (
            reported_to_the_search(tune.report),
            trial_copy(sweep, _point(config)["number"]) as here,
        ):
            run_trial(here, **_point(config), end=end)

    return run


def _point(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's number and settings, and its seeds if they are not the search's own."""
    return dict(config[DRAWN])


def _callback(monitor: SearchMonitor, max_failures: int) -> Any:
    """A Ray Tune callback that tells the monitor what happens."""
    from ray import tune

    base: Any = compat.progress_callback()

    class Callback(base):  # without one, Ray adds its own, which prints
        def __reduce__(self) -> tuple[Any, ...]:
            # Ray pickles callbacks to the disk, and a terminal cannot be pickled.
            return tune.Callback, ()

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            monitor.reported(_point(trial.config)["number"], result)

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            point = _point(trial.config)
            monitor.started(point["number"], point["settings"])

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            monitor.completed(_point(trial.config)["number"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if compat.times_failed(trial) > max_failures:
                monitor.failed(_point(trial.config), compat.raised(trial))

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            monitor.restarted(_point(trial.config)["number"], compat.raised(trial))

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            monitor.tick(sum(trial.status == "RUNNING" for trial in trials))

    return Callback()


def _quiet_tune() -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the metrics are in MLflow
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # progress lacks objectives
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # a traceback for a lost process
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would record trials as failed
