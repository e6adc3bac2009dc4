"""The search: Ray Tune runs trials that Optuna suggests. The only module that imports Ray Tune."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from vamf import output
from vamf.cluster.bars import step_bar
from vamf.cluster.ended import POSTPONED, UNTRIED, describe, give_up, postpone
from vamf.cluster.failures import NonFiniteObjective, RunFailed, StorageUnusable
from vamf.cluster.halving import Judge, seconds_at_rungs
from vamf.cluster.launch import Launch, launch
from vamf.cluster.nodes import groups, sizes
from vamf.cluster.outage import Waiting, catch_up
from vamf.cluster.quiet import quiet_optuna
from vamf.cluster.room import Watch
from vamf.cluster.scaling import Scaling
from vamf.cluster.space import Space
from vamf.cluster.storage import Storage, one_line, told_to_the_search
from vamf.cluster.study import follow_landscape, open_study, sampler, settle, settle_one
from vamf.cluster.sweep import Sweep
from vamf.cluster.trials import Trial, judged, load_trials, not_finite, over_seeds, trial_folder
from vamf.cluster.verdicts import BASELINE
from vamf.output import say
from vamf.redact import redacted
from vamf.tracking import provenance
from vamf.training.loop import Summary
from vamf.training.spent import spent_in
from vamf.training.trainer import NonFiniteLoss


@one_line()
@quiet_optuna()
def search(space: Space, sweep: Sweep) -> None:
    """Runs what is left of a sweep; its study and its trials' files hold the results.

    A trial that fails, or has an objective that is not finite, costs that trial only. A trial whose
    process dies is started again, as often as ``scaling.max_failures`` says, and goes on from its
    checkpoint. Raises KeyboardInterrupt if it is interrupted, StorageUnusable if nothing can be
    written any more.
    """
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    _quiet_tune()
    storage = optuna.storages.RDBStorage(sweep.storage)
    begun = sweep.name in optuna.get_all_study_names(storage)
    left = sweep.trials - len(load_trials(sweep.directory))
    if left <= 0:
        return
    metrics = [_objective(index) for index in range(len(sweep.objectives))]
    algorithm = OptunaSearch(
        space=_Numbered(space.space),
        metric=metrics,
        mode=["min"] * len(metrics),
        points_to_evaluate=None if begun else [dict(point) for point in space.POINTS],
        sampler=sampler(space, sweep),
        study_name=sweep.name,
        storage=storage,
    )
    open_study(sweep).set_metric_names(list(sweep.objectives))
    resources = trial_resources(sweep.scaling)
    total = left * sweep.seeds * sweep.experiment.steps
    with step_bar(total, scale=True) as bar:
        tune.Tuner(
            tune.with_resources(_run_trial(sweep), resources),
            tune_config=tune.TuneConfig(
                search_alg=algorithm,
                num_samples=left,
                max_concurrent_trials=at_once(sweep.scaling),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(sweep.directory / "ray"),
                failure_config=tune.FailureConfig(max_failures=sweep.scaling.max_failures),
                callbacks=[_progress(space, sweep, bar)],
                verbose=0,
            ),
        ).fit()
    settle(sweep)


def trial_resources(scaling: Scaling) -> dict[str, float]:
    """What Ray Tune reserves for a trial's own process."""
    if scaling.workers == 0:
        return {"CPU": scaling.cpus, "GPU": scaling.gpus or 0}
    # The workers reserve the CPUs; Ray refuses a bundle of nothing at all.
    return {"CPU": 0, "memory": 1e6}


def at_once(scaling: Scaling) -> int | None:
    """How many trials the nodes have room for; None if Ray Tune itself can tell.

    A trial with workers of its own takes no CPU for itself: without a limit Ray Tune would start
    the whole search at once, a process each, and ask Optuna for all points before any result.
    """
    return None if scaling.workers == 0 else max(1, groups(scaling, sizes()))


def _objective(index: int) -> str:
    return f"objective_{index}"


@dataclass(frozen=True)
class _Numbered:
    """Draws a trial's settings and its number in the study; Ray pickles it with its state."""

    draw: Callable[[optuna.Trial], Mapping[str, Any]]

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        return {"number": trial.number, "settings": dict(self.draw(trial))}


def _run_trial(sweep: Sweep) -> Any:
    from ray import tune

    known = provenance.of_this()

    def run(config: dict[str, Any]) -> None:
        os.environ.update(known)
        with told_to_the_search(tune.report):
            run_trial(sweep, config["number"], config["settings"])

    return run


def run_trial(sweep: Sweep, number: int, settings: Mapping[str, Any]) -> None:
    """Trains a point with each of its seeds, in a Ray Tune trial, and reports its objectives.

    What an earlier attempt has trained of it is not trained again. A trial that cannot begin, for
    reasons that are not its own, leaves no record.
    """
    from ray import tune

    output.tolerate()
    experiment = sweep.experiment.override(settings)
    trial = Trial(number=number, settings=dict(settings), label=experiment.beta.label)
    folder = trial_folder(sweep.directory, number)
    (folder / POSTPONED).unlink(missing_ok=True)
    runs: list[Summary] = []
    error: str | None = None
    for index in range(sweep.seeds):
        try:
            runs.append(_run_seed(sweep, trial, index))
        except UNTRIED as failure:
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
        "metrics": over_seeds(whole) if len(whole) == sweep.seeds else {},
        "seeds": [{name: m.value for name, m in run.items()} for run in whole],
        "error": error,
        "stopped": next((run.stopped for run in runs if run.stopped is not None), None),
        "steps": sum(run.step for run in runs),
        "seconds_at_rungs": seconds_at_rungs(sweep.directory, number),
    }
    ended = judged(Trial(**finished), sweep.objectives)  # a mean of seeds may overflow
    ended.save(folder)
    catch_up(sweep)
    if ended.complete:
        values = [ended.metrics[name].value for name in sweep.objectives]
        tune.report({_objective(index): value for index, value in enumerate(values)})


def _run_seed(sweep: Sweep, trial: Trial, index: int) -> Summary:
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    seed = sweep.experiment.seed + index
    experiment = sweep.experiment.override({**trial.settings, "seed": seed})
    suffix = f" seed {seed}" if sweep.seeds > 1 else ""
    start = Launch(
        directory=trial_folder(sweep.directory, trial.number) / f"seed_{seed}",
        uri=sweep.parent.uri,
        name=f"{sweep.name}-t{trial.number:02d} {trial.label}{suffix}",
        preset=sweep.preset,
        parent=sweep.parent,
        tags={"sweep": sweep.name, "trial": str(trial.number)},
    )
    before = index * experiment.steps
    return launch(
        experiment,
        start,
        sweep.scaling,
        check=lambda summary: _require_finite(summary, sweep.objectives),
        report=lambda progress: tune.report({"steps": before + progress["step"]}),
        callbacks=[TuneReportCallback()] if sweep.scaling.workers else [],
        halt=_judge(sweep, trial) if index == 0 and sweep.halving.rungs else None,
    )


def _require_finite(summary: Summary, objectives: Sequence[str]) -> None:
    """Raises NonFiniteObjective if a run that came to its end cannot be compared."""
    why = not_finite(summary.metrics, objectives) if summary.stopped is None else None
    if why is not None:
        raise NonFiniteObjective(why)


def _judge(sweep: Sweep, trial: Trial) -> Judge:
    return Judge(
        halving=sweep.halving,
        sweep=sweep.directory,
        trial=trial.number,
        objectives=sweep.objectives,
        spared=trial.label == BASELINE,
    )


def _progress(space: Space, sweep: Sweep, bar: Any) -> Any:
    """A Ray Tune callback: moves the bar with the steps of all trials, prints a line a trial."""
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback

    steps: dict[str, int] = {}
    watch, waiting = Watch(sweep.scaling), Waiting(sweep.directory)
    storage = Storage(sweep.directory)

    class Progress(TrialProgressCallback):  # where there is none, Ray adds its own, which prints
        def __reduce__(self) -> tuple[Any, ...]:
            # Ray writes a copy to disk, which nobody reads; the bar's terminal cannot be copied.
            return tune.Callback, ()

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            storage.hear(result)
            self._move(trial, result.get("steps", result.get("step", 0)))

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self._move(trial, sweep.seeds * sweep.experiment.steps)
            self._line(trial)
            with storage.minded():
                settle_one(sweep, trial.config["number"])
                follow_landscape(space, sweep, trial.config["number"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if trial.num_failures > sweep.scaling.max_failures and storage.usable():
                with storage.minded():
                    give_up(sweep, trial.config)
                self._line(trial)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            number = trial.config["number"]
            if storage.usable():
                say(f"trial {number}: its process died; it goes on from its checkpoint")

        def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
            storage.require()
            for line in (watch.look(), *waiting.look()):
                if line:
                    say(line)

        def _move(self, trial: Any, now: int) -> None:
            bar.update(max(now - steps.get(trial.trial_id, 0), 0))
            steps[trial.trial_id] = max(now, steps.get(trial.trial_id, 0))

        def _line(self, trial: Any) -> None:
            number = trial.config["number"]
            try:
                say(describe(sweep, number))
            except (OSError, ValueError) as error:  # what only prints ends no search
                say(f"trial {number}: its record could not be read: {error}")

    return Progress()


def _quiet_tune() -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow has the figures
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # progress lacks objectives
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # a traceback for a lost process
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would tell Optuna of failures
