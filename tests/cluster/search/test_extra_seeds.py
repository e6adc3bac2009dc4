"""More seeds for what decides a search: what they may spend, and what a lost one costs.

Times are those of a clock of the test; Optuna's study and the records are real.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import searching
from helpers.searching import SPACE, begun, without_ray
from helpers.tiny import TINY, tracked

from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import budget as budget_module
from vamf.cluster.search import search_runner, trial_runner
from vamf.cluster.search.admission import Admission
from vamf.cluster.search.analysis.results import gather
from vamf.cluster.search.budget import Budget, BudgetClock
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.extra_seeds import extra_seeds
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trial_end import describe, record_failure
from vamf.cluster.search.trials import Trial, load_trials, over_seeds, trial_folder
from vamf.cluster.train.tracked_run import create
from vamf.errors import RunFailed
from vamf.metrics.distances import Measurement
from vamf.tracking import Run

VARIANCE, DISTANCE = "eval/loss_variance", "eval/fd"
SEED_S = 300.0


def trial(number: int, distances: list[float], variance: float = 1.0) -> Trial:
    """Each of its seeds took 300 s on a GPU."""
    seeds = [{VARIANCE: variance, DISTANCE: distance} for distance in distances]
    runs = [{name: Measurement(value, 0.1) for name, value in seed.items()} for seed in seeds]
    spent = SEED_S * len(seeds)
    return Trial(
        number=number,
        settings={"beta.value": number / 100},
        label=f"{number}",
        baseline=number == 0,
        metrics=over_seeds(runs),
        seeds=seeds,
        seconds=spent,
        gpu_seconds=spent,
    )


def undecided(number: int, seeds: int) -> Trial:
    """After each pair of seeds its mean is that of all others, so that all are on the front."""
    return trial(number, [(-1.0) ** seed * (1 + number) for seed in range(seeds)])


def sweep_of(directory: Path, trials: int | None, budget: Budget, seeds: Any = "auto") -> Sweep:
    parent = Run(uri="", experiment_id="", run_id="", spool="")
    return Sweep(
        directory=directory,
        space="test",
        experiment=TINY,
        preset="tiny",
        objectives=(VARIANCE, DISTANCE),
        trials=trials,
        seeds=2,
        parent=parent,
        scaling=Scaling(gpus=1),
        budget=budget,
        front_seeds=seeds,
    )


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has searches train one seed after the other, for 300 s each, and nothing be trained."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(time=lambda: now.seconds))

    def train(sweep: Sweep, number: int, seeds: int) -> None:
        before = {known.number: len(known.seeds) for known in load_trials(sweep.directory)}
        now.seconds += SEED_S * (seeds - before.get(number, 0))
        undecided(number, seeds).save(trial_folder(sweep.directory, number))

    def search(space: Any, sweep: Sweep, clock: BudgetClock, driver: Any) -> None:
        while Admission.of(sweep, clock).refusal() is None:
            train(sweep, len(load_trials(sweep.directory)), sweep.seeds)

    def add_seeds(space: Any, sweep: Sweep, clock: BudgetClock, wanted: Mapping[int, int]) -> None:
        last = clock.last_start(load_trials(sweep.directory))
        for number, seeds in wanted.items():
            if now.seconds <= last:
                train(sweep, number, seeds)

    monkeypatch.setattr(search_runner, "search", search)
    monkeypatch.setattr(search_runner, "add_seeds", add_seeds)
    monkeypatch.setattr(search_runner, "_ended", lambda *_: [])


def seeds_after(sweep: Sweep) -> list[int]:
    """The seeds of each trial when the search has ended."""
    driver: Any = SimpleNamespace(gone_as_last=lambda: True)
    search_runner._search(SPACE, sweep, driver)
    return [len(known.seeds) for known in load_trials(sweep.directory)]


@pytest.mark.parametrize("limit", ["hours", "gpu_hours"])
@pytest.mark.parametrize(
    ("trials", "seeds"),
    [
        (None, [3] * 8),  # 4800 of 7200 s for trials of 600 s, and 2400 s for seeds of 300 s
        (100, [3] * 8),
        (4, [6] * 4),  # 2400 s, and 4800 s for 16 seeds
    ],
)
def test_a_third_of_a_budget_is_for_more_seeds(
    limit: str, trials: int | None, seeds: list[int], one_gpu: None, tmp_path: Path
) -> None:
    budget = Budget(**{limit: 2.0})
    assert seeds_after(sweep_of(tmp_path, trials, budget)) == seeds


@pytest.mark.parametrize("limit", ["hours", "gpu_hours"])
@pytest.mark.parametrize(("left", "added"), [(299, 0), (301, 1), (1001, 3)])
def test_each_seed_must_fit_the_rest_of_the_budget(
    limit: str, left: int, added: int, one_gpu: None, tmp_path: Path
) -> None:
    """Four trials of 600 s have ended; all of them want two seeds more."""
    spent = 2400.0 if limit == "gpu_hours" else 0.0  # a command's hours begin with it
    for number in range(4):
        undecided(number, 2).save(trial_folder(tmp_path, number))
    sweep = sweep_of(tmp_path, 4, Budget(**{limit: (spent + left) / 3600}))
    assert sum(seeds_after(sweep)) == 4 * 2 + added


def test_without_a_budget_all_seeds_are_added(one_gpu: None, tmp_path: Path) -> None:
    for name, seeds, all_of_them in (("auto", "auto", 8), ("three", 3, 3)):
        (tmp_path / name).mkdir()
        sweep = sweep_of(tmp_path / name, 3, Budget(), seeds)
        assert seeds_after(sweep) == [all_of_them] * 3


def test_added_seeds_change_neither_a_trials_time_nor_the_reserve() -> None:
    """Of 6 GPU-hours 4 are for trials of 600 s; seeds have taken an hour of the other 2."""
    trials = [undecided(0, 2), undecided(1, 2 + 12)]  # 14400 s less 2 x 600 s are left
    clock = BudgetClock(Budget(gpu_hours=6.0), seeds=2, reserve=1 / 3)
    assert clock.exhausted(trials, running=21) is None
    assert clock.exhausted(trials, running=22) is not None


def test_a_search_goes_on_if_there_is_room_for_a_seed_alone(tmp_path: Path) -> None:
    undecided(0, 2).save(trial_folder(tmp_path, 0))
    sweep = sweep_of(tmp_path, 1, Budget(gpu_hours=901 / 3600), None)
    with pytest.raises(ValueError, match=r"room for another trial; .* 600 GPU-seconds for a trial"):
        Extension().of(sweep)
    assert Extension(seeds=3).of(sweep).front_seeds == 3
    with pytest.raises(ValueError, match=r"room for another seed; .* 300 GPU-seconds for a seed"):
        Extension(seeds=3, gpu_hours=899 / 3600).of(sweep)


def test_points_are_tested_at_levels_alone(tmp_path: Path) -> None:
    """With two seeds the verdict is clear; a third one, after which a budget ended, hides it."""
    base = trial(0, [10.0, 10.1, 10.0], variance=4.0)
    clear = trial(1, [1.0, 1.1, 50.0], variance=3.0)
    assert extra_seeds(sweep_of(tmp_path, 2, Budget()), [base, clear]) == {}


def test_what_halving_saved_leaves_added_seeds_out(tmp_path: Path) -> None:
    """A point of 2 x 30 steps ended after 10; the baseline has 2 x 6, and six seeds more."""
    sweep = replace(sweep_of(tmp_path, 2, Budget()), halving=Halving(rungs=(4,)))
    replace(undecided(0, 8), steps=8 * 6).save(trial_folder(tmp_path, 0))
    settings = {"beta.value": 0.5, "steps": 30}
    ended = Trial(number=1, settings=settings, label="", stopped="x", steps=10, seconds=5.0)
    ended.save(trial_folder(tmp_path, 1))
    saved = gather(sweep).savings
    assert saved is not None
    assert (saved.steps, saved.all_steps) == (50, 72)
    assert (saved.seconds, saved.all_seconds) == (25.0, 2 * SEED_S + 30.0)


class Lost(BaseException):
    """The end of a process, which it cannot handle itself."""


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (Lost(), "its process died more than 3 times; logs in LOGS"),
        (RunFailed("workers failed more than 3 times"), "seed 1: workers failed more than 3 times"),
    ],
    ids=["process", "workers"],
)
def test_a_seed_that_is_lost_costs_no_result(
    loss: BaseException,
    why: str,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_ray(monkeypatch)
    monkeypatch.setattr(connect, "log_folder", lambda: "LOGS")
    sweep = begun(tmp_path / "s", tracking_uri)
    before, _ = search_runner.run(SPACE, sweep)
    train, tried = trial_runner.launch, list[int]()

    def launch(experiment: Any, start: Any, *rest: Any, **hooks: Any) -> Any:
        if start.directory.parent.name == "t001":
            create(experiment, start)
            raise loss
        return train(experiment, start, *rest, **hooks)

    def add_seeds(space: Any, sweep: Sweep, clock: Any, wanted: Mapping[int, int]) -> None:
        for number, seeds in wanted.items():
            tried.append(number)
            try:
                searching.add_seeds(space, sweep, clock, {number: seeds})
            except Lost:  # what the monitor does
                settings = load_trials(sweep.directory)[number].settings
                record_failure(sweep, {"number": number, "settings": settings}, None)

    monkeypatch.setattr(trial_runner, "launch", launch)
    monkeypatch.setattr(search_runner, "add_seeds", add_seeds)
    more = search_runner.resumed(sweep.directory, tracking_uri, Extension(seeds=2))
    found, _ = search_runner.run(SPACE, more)
    assert tried == [0, 1]
    assert [len(known.seeds) for known in found.complete] == [2, 1]
    old, new = before.trials[1], found.trials[1]
    assert repr(replace(new, seconds=old.seconds)) == repr(old)  # an error may be NaN
    assert describe(more, 1) == f"trial 1  {new.label}  got no more seeds: {why}"
    if isinstance(loss, Lost):
        (run,) = tracked(tracking_uri, trial_folder(sweep.directory, 1) / "seed_1")
        assert (run.info.status, run.data.tags["error"]) == ("FAILED", why)

    monkeypatch.setattr(trial_runner, "launch", train)
    again = search_runner.resumed(sweep.directory, tracking_uri)
    found, _ = search_runner.run(SPACE, again)
    assert tried == [0, 1, 1]
    assert [len(known.seeds) for known in found.complete] == [2, 2]
    assert "seeds" not in describe(again, 1)
