"""Ending trials early: the rule, the loop that obeys it, and what it is said to have saved."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from helpers.tiny import TINY, history, tracked
from mlflow import MlflowClient
from optuna.trial import TrialState

from jobs import named
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner
from vamf.cluster.search.analysis.pruning_savings import savings
from vamf.cluster.search.analysis.report import report
from vamf.cluster.search.analysis.results import table
from vamf.cluster.search.halving import Halving, ParetoPruner, delete_rung_records, seconds_at_rungs
from vamf.cluster.search.space import Space
from vamf.cluster.search.study import open_study
from vamf.cluster.search.trials import Trial
from vamf.metrics.distances import Measurement
from vamf.presets import PRESETS
from vamf.training.evaluation import Metrics
from vamf.training.loop import Session, Summary, train

RULE = Halving(rungs=(2, 4), keep=0.5)


def judge(
    folder: Path, number: int, *, rule: Halving = RULE, never_ends: bool = False
) -> ParetoPruner:
    return ParetoPruner(
        halving=rule, sweep=folder, trial=number, objectives=("a", "b"), never_ends=never_ends
    )


def figures(a: float, b: float) -> Metrics:
    return {"a": Measurement(a, 0.1), "b": Measurement(b, 0.1)}


def come(folder: Path, *points: tuple[float, float], rule: Halving = RULE) -> list[str | None]:
    """The verdicts on trials that come to step 2 one after the other."""
    verdicts = []
    for number, point in enumerate(points):
        (folder / f"t{number:03d}").mkdir()
        verdicts.append(judge(folder, number, rule=rule)(2, figures(*point), 1.5))
    return verdicts


def test_the_first_goes_on_and_the_beaten_half_does_not(tmp_path: Path) -> None:
    assert come(tmp_path, (1, 1), (2, 2), (3, 3), (0, 0), (0.5, 0.5)) == [
        None,
        "step 2: place 2 of 2, on front 2",
        "step 2: place 3 of 3, on front 3",
        None,
        None,
    ]


def test_who_beats_in_one_objective_only_is_as_good(tmp_path: Path) -> None:
    assert come(tmp_path, (0, 9), (9, 0), (3, 3), (3.1, 2.9)) == [
        None,
        None,
        # Of three on one front the ends come first; of four the middle ones differ in their room.
        "step 2: place 3 of 3, on front 1",
        "step 2: place 4 of 4, on front 1",
    ]


def test_figures_that_are_not_finite_end_a_trial_and_count_for_no_other(tmp_path: Path) -> None:
    assert come(tmp_path, (math.nan, 1), (1, math.inf), (5, 5)) == [
        "step 2: its objectives are not finite",
        "step 2: its objectives are not finite",
        None,
    ]


def test_rungs_do_not_mix(tmp_path: Path) -> None:
    come(tmp_path, (0, 0), (1, 1))
    assert judge(tmp_path, 1)(4, figures(1, 1), 0) is None


def test_an_answer_is_given_again_whatever_others_did_since(tmp_path: Path) -> None:
    come(tmp_path, (1, 1), (2, 2))
    (tmp_path / "t002").mkdir()
    judge(tmp_path, 2)(2, figures(0, 0), 0)
    assert judge(tmp_path, 0)(2, figures(1, 1), 9) is None
    assert judge(tmp_path, 1)(2, figures(-1, -1), 9) == "step 2: place 2 of 2, on front 2"
    assert seconds_at_rungs(tmp_path, 1) == 1.5


def test_a_spared_trial_is_measured_and_never_ended(tmp_path: Path) -> None:
    come(tmp_path, (1, 1))
    (tmp_path / "t001").mkdir()
    assert judge(tmp_path, 1, never_ends=True)(2, figures(2, 2), 0) is None
    (tmp_path / "t002").mkdir()
    assert judge(tmp_path, 2)(2, figures(3, 3), 0) == "step 2: place 3 of 3, on front 3"


def test_a_trial_given_up_counts_no_more(tmp_path: Path) -> None:
    come(tmp_path, (0, 0))
    delete_rung_records(tmp_path / "t000")
    (tmp_path / "t001").mkdir()
    assert judge(tmp_path, 1)(2, figures(9, 9), 0) is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Halving(rungs=(6,)), r"halving.rungs must lie between 0 and the 6 steps; got 6"),
        (Halving(rungs=(2, 0)), r"halving.rungs must lie between 0 and the 6 steps; got 0"),
        (Halving(rungs=(2,), keep=1.0), r"halving.keep must lie between 0 and 1; got 1.0"),
        (Halving(rungs=(2,), keep=0.0), r"halving.keep must lie between 0 and 1; got 0.0"),
    ],
)
def test_rungs_that_cannot_be_are_refused(rule: Halving, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule.check(TINY)
    for keep in (0.01, 0.99):
        Halving(rungs=(1, TINY.steps - 1), keep=keep).check(TINY)


class Asked:
    """Ends a run at one of its rungs, and records what it was given."""

    def __init__(self, rungs: tuple[int, ...], last: int | None) -> None:
        self.rungs, self.last = rungs, last
        self.reported: dict[int, tuple[Metrics, float]] = {}

    def __call__(self, step: int, metrics: Metrics, seconds: float) -> str | None:
        self.reported[step] = metrics, seconds
        return "enough" if step == self.last else None


def test_a_run_ends_at_its_rung_and_says_so(tmp_path: Path) -> None:
    early_stop = Asked((1, 3), 3)
    summary = train(TINY, Session(directory=tmp_path, early_stop=early_stop))
    assert (summary.step, summary.stopped) == (3, "enough")
    assert repr(Summary.load(tmp_path / "summary.json")) == repr(summary)  # an error may be NaN
    assert list(early_stop.reported) == [1, 3]
    assert all(seconds > 0 for _, seconds in early_stop.reported.values())
    assert early_stop.reported[3][0] == summary.metrics
    assert train(TINY, Session(directory=tmp_path / "on", early_stop=Asked((1, 3), None))).step == 6


def test_a_run_that_died_at_a_rung_asks_again(tmp_path: Path) -> None:
    """A checkpoint at the rung is there, and nobody has heard the answer."""

    class Dies(Asked):
        def __call__(self, step: int, metrics: Metrics, seconds: float) -> str | None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, Session(directory=tmp_path, early_stop=Dies((2,), 2)))
    early_stop = Asked((2,), 2)
    summary = train(TINY, Session(directory=tmp_path, early_stop=early_stop))
    assert (summary.step, summary.stopped, list(early_stop.reported)) == (2, "enough", [2])


def test_measuring_at_rungs_changes_no_weight(tmp_path: Path) -> None:
    train(TINY, Session(directory=tmp_path / "plain"))
    train(TINY, Session(directory=tmp_path / "asked", early_stop=Asked((1, 3), None)))
    one, other = (
        json.loads((tmp_path / name / "checkpoints/step_00000006/manifest.json").read_text())
        for name in ("plain", "asked")
    )
    assert one["state.pt"]["sha256"] == other["state.pt"]["sha256"]


def trial(number: int, **changes: Any) -> Trial:
    return replace(Trial(number=number, settings={}, label=""), **changes)


def test_savings_are_those_of_a_search_with_a_known_answer() -> None:
    """Complete trials take 10 s, and 1 s more at rungs; stopped ones 4 s with theirs."""
    complete = [trial(n, seconds=11.0, seconds_at_rungs=1.0, steps=100) for n in range(2)]
    stopped = [trial(n, seconds=4.0, seconds_at_rungs=1.0, steps=30, stopped="x") for n in (2, 3)]
    failed = trial(4, seconds=3.0, steps=10, error="y")
    found = savings([*complete, *stopped, failed], 1, dict.fromkeys(range(5), 100))
    assert (found.stopped, found.trials, found.steps, found.all_steps) == (2, 4, 140, 400)
    # Without rungs 4 x 10 s; with them 2 x 11 s + 2 x 4 s.
    assert (found.seconds, found.all_seconds) == (10.0, 40.0)
    assert str(found).startswith("2 of 4 trials ended early: 140 of 400 steps not trained, 10 of")


def test_seeds_that_are_added_later_save_nothing() -> None:
    """Trials of two seeds, 10 s each; the complete ones get six more."""
    stopped = [trial(n, seconds=5.0, steps=500, stopped="x") for n in (2, 3)]
    for seeds in (2, 8):
        spent = {"seconds": 10.0 * seeds, "steps": 1000 * seeds, "seeds": [{}] * seeds}
        complete = [trial(n, **spent) for n in range(2)]
        found = savings([*complete, *stopped], 2, dict.fromkeys(range(4), 1000))
        assert (found.steps, found.all_steps) == (2 * 1500, 4 * 2000)
        assert (found.seconds, found.all_seconds) == (2 * 15.0, 4 * 20.0)


def test_savings_are_of_each_trials_own_steps() -> None:
    """Two ended half-way, at 10 and 20 ms a step; one has as many steps as a complete one."""
    steps = {0: 1000, 1: 4000, 2: 4000, 3: 8000}
    complete = [trial(n, seconds=s, steps=steps[n], seeds=[{}]) for n, s in ((0, 60.0), (1, 48.0))]
    stopped = [
        trial(2, seconds=20.0, steps=2000, stopped="x"),
        trial(3, seconds=80.0, steps=4000, stopped="x"),
    ]
    found = savings([*complete, *stopped], 1, steps)
    assert (found.steps, found.all_steps) == (6000, 17000)
    assert (found.seconds, found.all_seconds) == (28.0 + 80.0, 60.0 + 2 * 48.0 + 160.0)


def test_a_saving_is_negative_if_measuring_took_more() -> None:
    complete = trial(0, seconds=30.0, seconds_at_rungs=20.0, steps=100, seeds=[{}])
    stopped = trial(1, seconds=25.0, seconds_at_rungs=20.0, steps=50, stopped="x")
    assert savings([complete, stopped], 1, {0: 100, 1: 100}).seconds == 10.0 - 25.0 - 20.0


TOY = PRESETS["toy"].override(
    {
        "batch": 32,
        "ema": 0.8,
        "steps": 60,
        "log_every": 5,
        "evaluation.every": 60,
        "evaluation.variance_samples": 64,
        "evaluation.gradient_batches": 2,
        "evaluation.distance.samples": 200,
        "checkpoint.every": 10,
    }
)
POINTS = ((0.0, 1e-2), (1.0, 1e-2), (0.2, 1.0), (0.4, 1e-2), (0.0, 1.0))
"""beta and learning rate of the trials; the third and the last are far off in both objectives."""


def draw(trial: optuna.Trial) -> dict[str, Any]:
    beta, rate = POINTS[trial.suggest_int("point", 0, len(POINTS) - 1)]
    return {"beta.value": beta, "optim.lr": rate}


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "seeds", "points"), [(0, 2, (4, 1, 2, 3, 0)), (2, 1, (0, 2))])
def test_a_search_ends_what_others_beat_and_says_so_everywhere(
    workers: int,
    seeds: int,
    points: tuple[int, ...],
    local_ray: None,
    tracking_uri: str,
    tmp_path: Path,
) -> None:
    found_space = SimpleNamespace(
        PRESET="toy",
        OBJECTIVES=("eval/loss_variance", "eval/distance"),
        POINTS=[{"point": index} for index in points],
        sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed),
        space=draw,
    )
    space, rule = cast(Space, found_space), Halving(rungs=(20, 40), keep=0.4)
    plan = search_runner.Plan(space, "test", len(points), seeds, rule)
    scaling = Scaling(workers=workers, gpus=0)
    sweep = search_runner.new(plan, TOY, tmp_path / "halved", tracking_uri, scaling)
    found, files = search_runner.run(space, sweep)
    stopped, full = [trial for trial in found.trials if trial.stopped], seeds * TOY.steps
    numbers = {trial.number for trial in stopped}
    assert points.index(2) in numbers  # whichever trials it met, they were better
    assert 0 not in numbers  # the first point is the baseline: it is spared, however bad it is
    assert len(stopped) + len(found.complete) == len(points)
    assert all(trial.steps == full and len(trial.seeds) == seeds for trial in found.complete)

    study = open_study(sweep)
    for trial in stopped:
        assert trial.stopped is not None
        folder = sweep.directory / f"t{trial.number:03d}"
        assert not trial.metrics and trial.seconds_at_rungs > 0
        assert trial.stopped.startswith(f"step {trial.steps}: place ") and trial.steps in (20, 40)
        assert not (folder / "seed_1").exists()
        (run,) = tracked(tracking_uri, folder / "seed_0")
        assert (run.info.status, run.data.tags["stopped"]) == ("KILLED", trial.stopped)
        assert max(history(tracking_uri, run, "loss/train")) == trial.steps
        measured = json.loads((folder / f"rung_{trial.steps:08d}.json").read_text())["values"]
        logged = [history(tracking_uri, run, name)[trial.steps] for name in sweep.objectives]
        assert measured == logged
        assert study.trials[trial.number].state == TrialState.PRUNED
        assert f"stopped: {trial.stopped}" in table(found)
        assert trial.number not in found.front
    states = {trial.number: trial.state for trial in study.trials}
    assert {states[trial.number] for trial in found.complete} == {TrialState.COMPLETE}

    saved = found.savings
    assert saved is not None
    assert saved.steps == sum(full - trial.steps for trial in stopped) > 0
    assert f"halving    {saved}" in report(sweep, found, files)
    parent = MlflowClient(tracking_uri).get_run(sweep.parent.run_id)
    assert parent.data.metrics["search/steps_saved"] == saved.steps
    assert parent.data.tags["halving"] == str(saved)

    again = search_runner.resumed(sweep.directory, tracking_uri)
    assert again == sweep
    assert repr(search_runner.run(space, again)[0]) == repr(found)


@pytest.mark.parametrize("space", map(named.space, named.SPACES), ids=named.SPACES)
def test_every_sampler_goes_on_where_trials_were_pruned(space: Space) -> None:
    """They have no values: Optuna's samplers have stumbled over that before."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=space.sampler(0))
    states = [TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    for index in range(40):
        trial = study.ask()
        space.space(trial)
        state = states[index % 4]
        values = [index % 7, index % 5] if state == TrialState.COMPLETE else None
        study.tell(trial, values, state=state)
    assert len(study.get_trials(states=[TrialState.PRUNED])) == 10
