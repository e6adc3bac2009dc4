"""Objectives that are infinite or not a number: their trial failed, and nothing else sees them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.tiny import TINY, tracked
from optuna.trial import TrialState

from vamf import tracking
from vamf.cluster.search.analysis.beta_curve import smooth
from vamf.cluster.search.analysis.plots import plot
from vamf.cluster.search.analysis.results import Results, gather, table
from vamf.cluster.search.analysis.significance import verdicts
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import record_results
from vamf.cluster.search.trial_end import describe
from vamf.cluster.search.trial_runner import run_trial
from vamf.cluster.search.trials import Trial, load_trials, trial_folder
from vamf.cluster.train import tracked_run as launching
from vamf.metrics.distances import Measurement
from vamf.tracking import Run
from vamf.training.evaluation import Metrics
from vamf.training.loop import Summary

NAMES = ("eval/loss_variance", "eval/fd")
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
NOWHERE = Run(uri="", run_id="", experiment_id="", spool="")


def figures(variance: float, distance: float, error: float = 0.1) -> Metrics:
    pair = Measurement(variance, error), Measurement(distance, error)
    return dict(zip(NAMES, pair, strict=True))


def trial(number: int, variance: float, distance: float, error: float = 0.1) -> Trial:
    return Trial(
        number=number,
        settings={"beta.value": number / 10},
        label=f"β={number / 10:.3f}",
        metrics=figures(variance, distance, error),
        seeds=[{NAMES[0]: variance, NAMES[1]: distance + luck} for luck in (-0.1, 0.1)],
    )


def searched() -> list[Trial]:
    """Loss variance falls with beta, the distance is lowest at 0.4."""
    return [trial(k, float(np.exp(-k / 3)), 5 + (k / 10 - 0.4) ** 2) for k in range(8)]


def bad_trials(bad: float) -> list[Trial]:
    """Records as older searches left them, without an error."""
    return [trial(8, bad, 1.0), trial(9, 0.01, bad)]


def sweep_of(folder: Path, trials: Sequence[Trial] = (), parent: Run = NOWHERE) -> Sweep:
    folder.mkdir(exist_ok=True)
    for one in trials:
        one.save(trial_folder(folder, one.number))
    return Sweep(
        directory=folder,
        space="test",
        experiment=TINY,
        preset="tiny",
        objectives=NAMES,
        trials=len(trials),
        seeds=2,
        parent=parent,
    )


@BAD
def test_records_on_disk_fail_and_change_nothing_else(bad: float, tmp_path: Path) -> None:
    good = searched()
    without = gather(sweep_of(tmp_path / "good", good))
    sweep = sweep_of(tmp_path / "both", [*good, *bad_trials(bad)])
    found = gather(sweep)
    assert found.complete == without.complete == good
    assert [t.error for t in found.trials[8:]] == [
        f"objective {name} is not finite: {bad}" for name in NAMES
    ]
    assert (found.front, found.hypervolume) == (without.front, without.hypervolume)
    assert (found.reference, found.best) == (without.reference, without.best)
    reported = verdicts([*good, trial(9, 0.01, bad)], NAMES[1])
    assert reported == {**verdicts(good, NAMES[1]), 9: "-"}
    assert len(table(found).splitlines()) == 12
    assert f"failed: objective eval/fd is not finite: {bad}" in table(found).splitlines()[-1]
    assert f"failed: objective eval/fd is not finite: {bad}" in describe(sweep, 9)


@BAD
def test_the_fit_does_not_see_them(bad: float) -> None:
    fitted, without = smooth([*searched(), *bad_trials(bad)], NAMES), smooth(searched(), NAMES)
    assert fitted is not None and without is not None
    assert (fitted.best, fitted.interval) == (without.best, without.interval)
    assert fitted.best == pytest.approx(0.4, abs=0.05)
    assert smooth([*searched()[:3], *bad_trials(bad)], NAMES) is None  # too few are left


def results(trials: Sequence[Trial]) -> Results:
    numbers = frozenset(t.number for t in trials)
    return Results(
        objectives=NAMES, trials=list(trials), front=numbers, hypervolume=1.0, reference=(1.0, 1.0)
    )


def test_a_trial_that_is_not_finite_is_never_the_best() -> None:
    for trials in ([*bad_trials(math.nan), *searched()], [*searched(), *bad_trials(-math.inf)]):
        best = results(trials).best
        assert best is not None and best.number == 4
    assert results(bad_trials(math.nan)).best is None


NEGATIVE = [trial(k, k / 3 - 1, 5.0 - 2 * k) for k in range(8)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "trials",
    [
        [*searched(), *bad_trials(math.nan)],
        [*searched(), *bad_trials(math.inf)],
        bad_trials(math.nan),
        [],
        [trial(0, 1.0, 2.0), *bad_trials(math.nan)],
        [replace(t, metrics=figures(1.0 + t.number, 2.0, math.nan)) for t in searched()],
        [replace(t, metrics=figures(10.0**t.number, 2.0, math.inf)) for t in searched()],
        NEGATIVE,
    ],
    ids=["nan", "inf", "all", "none", "one", "nan error", "inf error", "negative"],
)
def test_table_and_plot_are_made_of_what_is_finite(trials: list[Trial], tmp_path: Path) -> None:
    found = results(trials)
    assert len(table(found).splitlines()) == 2 + len(trials)
    plot(found, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 2000


def test_all_failed_or_one_left(tmp_path: Path) -> None:
    nothing = gather(sweep_of(tmp_path / "none", bad_trials(math.nan)))
    assert (nothing.complete, nothing.front, nothing.hypervolume) == ([], frozenset(), 0.0)
    one = gather(sweep_of(tmp_path / "one", [trial(0, 1.0, 2.0), *bad_trials(math.inf)]))
    assert one.front == {0}
    assert one.hypervolume == pytest.approx(0.1 * 0.2)  # up to a tenth beyond it


def test_the_reference_lies_beyond_negative_objectives_too(tmp_path: Path) -> None:
    """A distance without bias can be negative: a tenth beyond -1 is -0.9."""
    trials = [trial(0, -2.0, 4.0), trial(1, -1.0, 2.0)]
    found = gather(sweep_of(tmp_path / "s", trials))
    assert found.reference == pytest.approx((-0.9, 4.4))
    # 1.1 x 0.4 of the first, and 0.1 x (4 - 2) more of the second.
    assert found.hypervolume == pytest.approx(1.1 * 0.4 + 0.1 * 2.0)


@BAD
def test_a_study_takes_them_for_failures(bad: float, tmp_path: Path) -> None:
    """A search of an older version died after such a trial's record was written."""
    sweep = sweep_of(tmp_path / "s", [trial(0, 1.0, 2.0), trial(1, 1.0, bad)])
    study = optuna.create_study(
        study_name=sweep.name, storage=sweep.storage, directions=["minimize"] * 2
    )
    for _ in range(2):
        study.ask()
    assert record_results(sweep) == []
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL]


def parent_in(folder: Path, uri: str) -> Run:
    """A search's run, with the folder that its trials look for."""
    (folder / "spool").mkdir()
    return tracking.create(uri, name="s", params={}, tags={}, spool=folder / "spool")


@pytest.mark.parametrize(
    ("distances", "error"),
    [
        ([2.0, math.nan], "seed 1: objective eval/fd is not finite: nan"),
        ([math.inf, 2.0], "seed 0: objective eval/fd is not finite: inf"),
        ([1.5e308, 1.5e308], "objective eval/fd is not finite: inf"),  # the mean overflows
    ],
)
def test_a_trial_whose_objective_is_not_finite_failed(
    distances: list[float],
    error: str,
    tmp_path: Path,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its run is marked as failed in MLflow, and Optuna hears of no value."""
    left, reported = list(distances), list[dict[str, float]]()
    parent = parent_in(tmp_path, tracking_uri)
    sweep = sweep_of(tmp_path, parent=parent)

    def fit(*args: Any, **hooks: Any) -> Summary:
        return Summary(step=6, seconds=1.0, metrics=figures(1.0, left.pop(0)), stopped=None)

    monkeypatch.setattr(launching, "fit", fit)
    monkeypatch.setattr("ray.tune.report", reported.append)
    run_trial(sweep, 0, {"beta.value": 0.5})
    (found,) = load_trials(tmp_path)
    assert found.error == error and not found.complete and reported == []
    for index, distance in enumerate(distances[: len(distances) - len(left)]):
        (run,) = tracked(tracking_uri, trial_folder(tmp_path, 0) / f"seed_{index}")
        assert run.info.status == ("FINISHED" if math.isfinite(distance) else "FAILED")
        said = None if math.isfinite(distance) else f"NonFiniteObjective: {error[8:]}"
        assert run.data.tags.get("error") == said
    assert f"failed: {error}" in describe(sweep, 0)


def test_an_early_end_stays_an_early_end(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rung ended says so itself, also if its objectives were not finite."""
    why = "step 2: its objectives are not finite"
    parent = parent_in(tmp_path, tracking_uri)
    ended = Summary(step=2, seconds=1.0, metrics=figures(1.0, math.nan), stopped=why)
    monkeypatch.setattr(launching, "fit", lambda *args, **hooks: ended)
    run_trial(sweep_of(tmp_path, parent=parent), 0, {"beta.value": 0.5})
    (found,) = load_trials(tmp_path)
    assert (found.error, found.stopped) == (None, why)
