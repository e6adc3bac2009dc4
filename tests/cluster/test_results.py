"""The table of a search, its best trial and its verdicts, on trials made by hand."""

from pathlib import Path

import numpy as np
import pytest

from vamf.cluster.results import Results, table
from vamf.cluster.trials import Trial, load_trials, over_seeds, trial_folder
from vamf.cluster.verdicts import verdicts
from vamf.metrics.distances import Measurement

VARIANCE, DISTANCE = "eval/loss_variance", "eval/fd_n40"


def trial(number: int, label: str, distances: list[float], variance: float = 1.0) -> Trial:
    seeds = [{VARIANCE: variance, DISTANCE: distance} for distance in distances]
    runs = [{name: Measurement(value, 0.1) for name, value in seed.items()} for seed in seeds]
    return Trial(
        number=number,
        settings={"beta.value": 0.0},
        label=label,
        seconds=12.3,
        metrics=over_seeds(runs),
        seeds=seeds,
    )


def results(*trials: Trial, front: set[int] = frozenset()) -> Results:  # type: ignore[assignment]
    return Results(
        objectives=(VARIANCE, DISTANCE),
        trials=list(trials),
        front=frozenset(front),
        hypervolume=1.0,
        reference=(2.0, 20.0),
    )


FAILED = Trial(number=7, settings={}, label="β=0.100", error="seed 0: the loss of step 2 is nan")


def test_over_seeds_is_the_mean_with_the_spread_of_seeds() -> None:
    runs = [{"a": Measurement(value, 9.0)} for value in (1.0, 2.0, 6.0)]
    mean = over_seeds(runs)["a"]
    assert mean.value == pytest.approx(3.0)
    assert mean.error == pytest.approx((7 / 3) ** 0.5)  # sqrt(((2^2 + 1 + 3^2) / 2) / 3)
    assert over_seeds(runs[:1]) == runs[0]


def test_differences_are_paired_by_seed() -> None:
    base = trial(0, "β=0.000", [10.0, 20.0, 30.0])
    better = trial(1, "β=0.500", [9.0, 18.9, 29.1])  # lower by 1.0 each, among a spread of 10
    worse = trial(2, "β=1.000", [11.0, 21.1, 30.9])
    equal = trial(3, "β=0.700", [9.8, 20.1, 30.1])
    found = results(base, better, worse, equal)
    assert list(verdicts(found.complete, DISTANCE).values()) == [
        "-",
        "better",
        "worse",
        "indistinguishable",
    ]


def test_trials_without_an_effect_are_seldom_told_apart_from_beta_0() -> None:
    """One trial and two seeds, then five trials: of searches one in twenty may have a verdict."""
    draw = np.random.default_rng(3)
    for trials in (1, 5):
        wrong = 0
        for rows in 10 + draw.normal(size=(400, 1 + trials, 2)):
            labels = ["β=0.000", *(f"β=0.{k}00" for k in range(1, 1 + trials))]
            numbered = enumerate(zip(labels, rows.tolist(), strict=True))
            made = [trial(number, label, row) for number, (label, row) in numbered]
            told = verdicts(made, DISTANCE).values()
            wrong += bool({"better", "worse"} & set(told))
        assert wrong < 0.05 * 400 + 3 * (0.05 * 0.95 * 400) ** 0.5


def test_no_verdict_without_a_baseline_of_as_many_seeds() -> None:
    one = trial(1, "β=0.500", [9.0, 18.0])
    assert verdicts([one], DISTANCE)[1] == "-"
    assert verdicts([trial(0, "β=0.000", [9.0]), one], DISTANCE)[1] == "-"


def test_one_seed_or_equal_figures_are_indistinguishable() -> None:
    base, one = trial(0, "β=0.000", [9.0]), trial(1, "β=0.500", [5.0])
    assert verdicts([base, one], DISTANCE)[1] == "indistinguishable"
    base, one = trial(0, "β=0.000", [9.0, 8.0]), trial(1, "β=0.500", [9.0, 8.0])
    assert verdicts([base, one], DISTANCE)[1] == "indistinguishable"


def test_the_best_is_the_nearest_on_the_front() -> None:
    trials = trial(0, "β=0.000", [5.0]), trial(1, "β=0.500", [6.0]), trial(2, "β=1.000", [7.0])
    found = results(*trials, FAILED, front={1, 2})
    assert found.best is trials[1]
    assert found.complete == list(trials)
    assert results(FAILED).best is None


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_ordered_and_starred() -> None:
    found = results(
        trial(0, "β=0.000", [9.0, 9.2]), trial(1, "β=0.500", [6.0, 6.4]), FAILED, front={1}
    )
    lines = table(found).splitlines()
    assert len({len(line) for line in lines}) == 1  # columns are aligned
    rows = [cells(line) for line in lines]
    header = ["", "trial", "beta", "loss_variance", "fd_n40", "against β=0", "seconds"]
    assert rows[0] == header
    assert rows[2] == ["*", "1", "β=0.500", "1", "6.20 ± 0.20", "better", "12"]
    assert rows[3][:3] == ["", "0", "β=0.000"]
    assert rows[4][1:4] == ["7", "β=0.100", f"failed: {FAILED.error}"]


def test_the_table_of_one_seed_has_no_verdicts() -> None:
    found = results(trial(0, "β=0.000", [9.0]), FAILED)
    rows = [cells(line) for line in table(found).splitlines()]
    assert rows[0] == ["", "trial", "beta", "loss_variance", "fd_n40", "seconds"]
    assert len(rows) == 4
    assert table(results()).count("\n") == 1


def test_records_are_read_back_in_order(tmp_path: Path) -> None:
    kept = [trial(10, "β=0.500", [6.0, 7.0]), trial(2, "β=0.000", [9.0, 8.0]), FAILED]
    for one in kept:
        one.save(trial_folder(tmp_path, one.number))
    trial_folder(tmp_path, 3).mkdir()  # of a trial in flight
    assert load_trials(tmp_path) == sorted(kept, key=lambda one: one.number)
