"""The hours of a search, and which points get more seeds; Optuna and the trials are real."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.searching import SPACE, begun, space_of, without_ray
from helpers.tiny import TINY

from jobs import tune
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import budget as budget_module
from vamf.cluster.search import saved_search, search_runner
from vamf.cluster.search.budget import Budget, BudgetClock
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.extra_seeds import LEVELS, extra_seeds, rate
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.study import open_study
from vamf.cluster.search.trials import Trial, load_trials, over_seeds, trial_folder
from vamf.metrics.distances import Measurement
from vamf.run_layout import SUMMARY
from vamf.tracking import Run

VARIANCE, DISTANCE = "eval/loss_variance", "eval/fd"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


def trial(number: int, distances: list[float], variance: float = 1.0, **spent: float) -> Trial:
    seeds = [{VARIANCE: variance, DISTANCE: distance} for distance in distances]
    runs = [{name: Measurement(value, 0.1) for name, value in seed.items()} for seed in seeds]
    return Trial(
        number=number,
        settings={"beta.value": number / 10},
        label=f"{number}",
        baseline=number == 0,
        metrics=over_seeds(runs),
        seeds=seeds,
        **spent,  # type: ignore[arg-type]
    )


def sweep_of(front_seeds: Any) -> Sweep:
    parent = Run(uri="", experiment_id="", run_id="", spool="")
    return Sweep(
        directory=Path("s"),
        space="test",
        experiment=TINY,
        preset="tiny",
        objectives=(VARIANCE, DISTANCE),
        trials=4,
        seeds=2,
        parent=parent,
        front_seeds=front_seeds,
    )


@pytest.mark.parametrize(
    ("left", "room"),
    [(101.0, True), (99.0, False), (-1.0, False)],
)
def test_a_trial_starts_if_the_mean_one_would_end_in_time(
    left: float, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour has 3600 s, of which some are left; the trials took 100 s each on average."""
    trials = [trial(0, [1.0], seconds=50.0), trial(1, [1.0], seconds=150.0)]
    failed = replace(trial(2, [1.0], seconds=9e9), error="seed 0: not finite")  # tells nothing
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(time=lambda: 3600.0))
    clock = BudgetClock(Budget(hours=1.0), start=left)
    assert (clock.exhausted([*trials, failed]) is None) == room
    assert (clock.exhausted([]) is None) == (left > 0)  # nothing is known of a first trial


@pytest.mark.parametrize(
    ("spent", "running", "room"),
    [(1800.0, 0, True), (1800.0, 1, False), (1801.0, 0, False), (900.0, 2, True)],
)
def test_gpu_hours_count_the_trials_that_run(spent: float, running: int, room: bool) -> None:
    """One GPU-hour; a trial takes as much as the one that has ended."""
    trials = [trial(0, [1.0], gpu_seconds=spent)]
    clock = BudgetClock(Budget(gpu_hours=1.0), start=0.0)
    assert (clock.exhausted(trials, running) is None) == room


def test_failed_trials_spend_gpu_hours() -> None:
    failed = Trial(number=0, settings={}, label="", error="e", gpu_seconds=3600.0)
    assert BudgetClock(Budget(gpu_hours=1.0)).exhausted([failed]) is not None
    assert BudgetClock(Budget(gpu_hours=1.01)).exhausted([failed]) is None
    assert BudgetClock(Budget()).exhausted([failed], running=1000) is None


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (Budget(hours=0.0), "hours must be positive; got 0.0"),
        (Budget(hours=float("nan")), "hours must be positive; got nan"),
        (Budget(gpu_hours=-1.0), "gpu_hours must be positive; got -1.0"),
        (Budget(gpu_hours=1.0), "gpu_hours needs trials on GPUs; got scaling.gpus=0"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget: Budget, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        budget.check(Scaling(gpus=0))


def test_a_number_of_seeds_goes_to_the_first_two_fronts_and_the_baseline() -> None:
    """Fronts: {1}, {2}, {0, 3}; trial 4 failed, and trial 2 has the seeds already."""
    trials = [
        trial(0, [3.0, 3.0], variance=4.0),
        trial(1, [1.0, 1.0], variance=1.0),
        trial(2, [2.0, 2.0, 2.0], variance=2.0),
        trial(3, [4.0, 4.0], variance=3.0),
        replace(trial(4, [0.0, 0.0], variance=0.0), error="seed 0: not finite"),
    ]
    assert extra_seeds(sweep_of(3), trials) == {0: 3, 1: 3}
    assert extra_seeds(sweep_of(None), trials) == {}
    assert extra_seeds(sweep_of(3), []) == {}


def test_auto_doubles_the_seeds_where_the_verdict_is_open() -> None:
    clear = trial(1, [1.0, 1.1], variance=3.0)  # 9 below the baseline, where seeds differ by 0.1
    base, near = trial(0, [10.0, 10.1], variance=4.0), trial(2, [10.1, 9.9], variance=2.0)
    sweep = sweep_of("auto")
    assert extra_seeds(sweep, [base, clear, near]) == {0: 4, 2: 4}
    more = [
        trial(0, [10.0, 10.1] * 2, variance=4.0),
        clear,
        trial(2, [10.1, 9.9] * 2, variance=2.0),
    ]
    assert extra_seeds(sweep, more) == {0: 8, 2: 8}
    assert extra_seeds(sweep, [more[0], clear, near]) == {2: 4}  # a round that was interrupted
    last = [trial(0, [10.0, 10.1] * 4, variance=4.0), trial(2, [10.1, 9.9] * 4, variance=2.0)]
    assert LEVELS[-1] == 8 and extra_seeds(sweep, last) == {}
    assert extra_seeds(sweep, [base, clear]) == {}  # closed
    assert extra_seeds(sweep, [clear, near]) == {}  # the baseline failed: nothing to compare


def test_repeated_tests_share_the_rate_of_false_verdicts() -> None:
    """Tested at 2, 4 and 8 seeds without an effect: in at most 5 % of searches a verdict."""
    import numpy as np

    from vamf.cluster.search.analysis.significance import verdicts

    draw, wrong, sweep = np.random.default_rng(5), 0, sweep_of("auto")
    for values in draw.normal(size=(400, 2, 8)):
        seen: set[str] = set()
        for count in LEVELS:
            trials = [trial(k, list(row[:count])) for k, row in enumerate(values)]
            seen |= set(verdicts(trials, DISTANCE, rate(sweep)).values())
        wrong += bool(seen & {"better", "worse"})
    assert wrong <= 0.05 * 400 + 3 * (0.05 * 0.95 * 400) ** 0.5


def test_a_search_without_a_number_of_trials_ends_with_its_hours(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the test each look at it, one before each trial, takes a fifth of an hour."""
    now = itertools.count()
    clock = SimpleNamespace(time=lambda: 720.0 * next(now))
    monkeypatch.setattr(budget_module, "time", clock)
    plan = search_runner.Plan(SPACE, "test", None, 1, budget=Budget(hours=1.0), preset="tiny")
    sweep = search_runner.new(plan, TINY, tmp_path / "s", tracking_uri, Scaling(gpus=0))
    assert sweep.trials is None
    assert sweep.announcement.startswith("searching test: as many trials as the budget allows, ")
    found, _ = search_runner.run(SPACE, sweep)
    assert len(found.trials) == 4
    assert saved_search.saved(sweep.directory).budget == Budget(hours=1.0)


@pytest.mark.slow  # six trainings
def test_a_search_is_extended_by_trials_and_by_seeds(tracking_uri: str, tmp_path: Path) -> None:
    sweep = begun(tmp_path / "s", tracking_uri)
    before, _ = search_runner.run(SPACE, sweep)
    first = [trial_folder(sweep.directory, k) / "seed_0" / SUMMARY for k in (0, 1)]
    written = [path.stat().st_mtime_ns for path in first]

    more = search_runner.resumed(sweep.directory, tracking_uri, Extension(trials=3, seeds=2))
    found, _ = search_runner.run(SPACE, more)
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert [path.stat().st_mtime_ns for path in first] == written  # not trained again
    assert {trial.number for trial in found.trials if len(trial.seeds) == 2} >= {0} | found.front
    for old, new in zip(before.trials, found.trials, strict=False):
        assert new.seeds[0] == old.seeds[0] and new.settings == old.settings
        assert new.steps == TINY.steps * len(new.seeds)
        for name in sweep.objectives:
            values = [seed[name] for seed in new.seeds]
            assert new.metrics[name].value == pytest.approx(sum(values) / len(values))
    states = {trial.state.name for trial in open_study(more).trials}
    assert states == {"COMPLETE"} and len(open_study(more).trials) == 3
    assert saved_search.saved(sweep.directory).front_seeds == 2

    again = search_runner.resumed(sweep.directory, tracking_uri)  # nothing is left to do
    assert search_runner.run(SPACE, again)[0] == found


def test_a_seed_that_fails_later_fails_its_point(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that diverges with one seed in three is no good point."""
    from vamf.cluster.search import trial_runner
    from vamf.errors import NonFiniteLoss

    sweep = begun(tmp_path / "s", tracking_uri)
    search_runner.run(SPACE, sweep)
    train = trial_runner.launch

    def launch(experiment: Any, start: Any, *rest: Any, **hooks: Any) -> Any:
        if start.directory.parent.name == "t001":
            raise NonFiniteLoss("the loss of step 3 is nan")
        return train(experiment, start, *rest, **hooks)

    monkeypatch.setattr(trial_runner, "launch", launch)
    more = search_runner.resumed(sweep.directory, tracking_uri, Extension(seeds=2))
    found, _ = search_runner.run(SPACE, more)
    errors = [t.error for t in found.trials]
    assert errors == [None, "seed 1: the loss of step 3 is nan"]
    assert [len(trial.seeds) for trial in found.complete] == [2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--trials", "1"], "the search has 2 trials already; got 1"),
        (["--seeds", "1"], "each point has 2 seeds already; got 1"),
        (["--hours", "0"], "hours must be positive; got 0.0"),
        (["--gpu-hours", "1"], "gpu_hours needs trials on GPUs; got scaling.gpus=0"),
        (
            ["--hours", "1e-9"],
            "the budget must have room for another trial; got hours=1e-09, and ",
        ),
        (["--set", "steps=9"], "unknown option --set"),
        (["--optim.lr", "1"], "unknown option --optim.lr"),
    ],
    ids=str,
)
def test_an_extension_that_is_none_is_refused(
    options: list[str],
    line: str,
    tracking_uri: str,
    two_seeds: Sweep,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        tune.main(["--resume", str(two_seeds.directory), "--tracking", tracking_uri, *options])
    assert end.value.code == 2
    assert line in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def two_seeds(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished search of two trials with two seeds each."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        folder = tmp_path_factory.mktemp("sweeps") / "s"
        sweep = begun(folder, tracking_uri, seeds=2)
        search_runner.run(SPACE, sweep)
    assert len(load_trials(sweep.directory)) == 2
    return sweep


def test_a_search_of_points_alone_needs_as_many_trials() -> None:
    space = space_of({"beta.value": 0.0}, {"beta.value": 0.5}, {"beta.value": 1.0})
    few = search_runner.Plan(space, "test", 2, 1)
    with pytest.raises(ValueError, match=r"at least 3 trials, .* and 1 seed; got 2 and 1"):
        search_runner.check(few, TINY)
    search_runner.check(search_runner.Plan(space, "test", None, "auto"), TINY)
