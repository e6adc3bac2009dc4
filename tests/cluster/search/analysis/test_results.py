"""The table of a search, its best trial and its verdicts, on trials made by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vamf.cluster.search.analysis.results import Results, table
from vamf.cluster.search.analysis.significance import verdicts
from vamf.cluster.search.trials import Trial, load_trials, over_seeds, trial_folder
from vamf.metrics.distances import Measurement

VARIANCE, DISTANCE = "eval/loss_variance", "eval/fd_n40"


def trial(number: int, label: str, distances: list[float], variance: float = 1.0) -> Trial:
    seeds = [{VARIANCE: variance, DISTANCE: distance} for distance in distances]
    runs = [{name: Measurement(value, 0.1) for name, value in seed.items()} for seed in seeds]
    return Trial(
        number=number,
        settings={"beta.value": 0.0},
        label=label,
        baseline=label == "β=0.000",
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
    assert over_seeds([{**runs[0], "b": runs[0]["a"]}, *runs[1:]]) == over_seeds(runs)


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


def test_trials_without_an_effect_are_seldom_distinguished_from_beta_0() -> None:
    """One trial and two seeds, then five trials: of searches one in twenty may have a verdict."""
    draw = np.random.default_rng(3)
    for trials in (1, 5):
        wrong = 0
        for rows in 10 + draw.normal(size=(400, 1 + trials, 2)):
            labels = ["β=0.000", *(f"β=0.{k}00" for k in range(1, 1 + trials))]
            numbered = enumerate(zip(labels, rows.tolist(), strict=True))
            made = [trial(number, label, row) for number, (label, row) in numbered]
            reported = verdicts(made, DISTANCE).values()
            wrong += bool({"better", "worse"} & set(reported))
        assert wrong < 0.05 * 400 + 3 * (0.05 * 0.95 * 400) ** 0.5


def test_trials_are_paired_by_the_seeds_that_both_have() -> None:
    """Of the baseline's four seeds, trial 1 has two, and trial 2 all."""
    base = trial(0, "β=0.000", [10.0, 20.0, 90.0, 91.0])
    some, all_four = trial(1, "β=0.500", [9.0, 19.1]), trial(2, "β=0.700", [9.1, 19.0, 89.0, 89.9])
    found = verdicts([base, some, all_four], DISTANCE)
    assert found == {0: "-", 1: "better", 2: "better"}


def test_no_verdict_without_a_baseline_of_as_many_seeds() -> None:
    one = trial(1, "β=0.500", [9.0, 18.0])
    assert verdicts([one], DISTANCE)[1] == "-"
    assert verdicts([trial(0, "β=0.000", [9.0]), one], DISTANCE)[1] == "-"


def test_one_seed_gives_no_verdict_and_equal_figures_are_indistinguishable() -> None:
    base, one = trial(0, "β=0.000", [9.0]), trial(1, "β=0.500", [5.0])
    assert verdicts([base, one], DISTANCE)[1] == "-"
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


def test_the_best_of_three_objectives_is_by_the_last_one() -> None:
    names = ("a", "b", "c")
    trials = [
        Trial(
            number=number,
            settings={},
            label="",
            metrics={n: Measurement(v, 0.1) for n, v in zip(names, values, strict=True)},
        )
        for number, values in enumerate([(1.0, 2.0, 3.0), (2.0, 3.0, 1.0), (3.0, 1.0, 2.0)])
    ]
    found = Results(
        objectives=names,
        trials=trials,
        front=frozenset({0, 1, 2}),
        hypervolume=1.0,
        reference=(9.0, 9.0, 9.0),
    )
    assert found.best is not None and found.best.number == 1
    numbers = [line.split("|")[2].strip() for line in table(found).splitlines()[2:]]
    assert numbers == ["1", "2", "0"]


def test_a_trial_has_cost_nothing_until_it_says_so(tmp_path: Path) -> None:
    """Records of older searches lack what was not known then."""
    Trial(number=3, settings={"beta.value": 0.5}, label="β=0.500").save(tmp_path)
    record = json.loads((tmp_path / "trial.json").read_text())
    for name in ("seconds", "gpu_seconds", "steps", "seconds_at_rungs", "baseline", "seeds"):
        del record[name]
    (tmp_path / "trial.json").write_text(json.dumps(record))
    found = Trial.load(tmp_path)
    assert (found.seconds, found.gpu_seconds, found.steps, found.seconds_at_rungs) == (0, 0, 0, 0)
    assert found.complete and not found.baseline and found.seeds == []


def test_the_table_is_ordered_and_starred() -> None:
    found = results(
        trial(0, "β=0.000", [9.0, 9.2]), trial(1, "β=0.500", [6.0, 6.4]), FAILED, front={1}
    )
    lines = table(found).splitlines()
    assert len({len(line) for line in lines}) == 1  # columns are aligned
    rows = [cells(line) for line in lines]
    header = ["", "trial", "beta", "loss_variance", "fd_n40", "against β=0.000", "seconds"]
    assert rows[0] == header
    assert rows[2] == ["*", "1", "β=0.500", "1", "6.20 ± 0.20", "better", "12"]
    assert rows[3][:3] == ["", "0", "β=0.000"]
    assert rows[4][1:4] == ["7", "β=0.100", f"failed: {FAILED.error}"]


def test_verdicts_are_against_the_baseline_whatever_the_labels() -> None:
    """A trial of beta = 0 with a bad learning rate came first, and is no baseline."""
    bad = replace(
        trial(0, "β=0.000 lr=0.1", [90.0, 92.0]), settings={"beta.value": 0.0, "optim.lr": 0.1}
    )
    base = replace(trial(1, "β=0.000 lr=0.001", [9.0, 9.2]), baseline=True, settings=bad.settings)
    other = trial(2, "β=0.000 lr=0.01", [9.1, 9.1])
    reported = verdicts([bad, base, other], DISTANCE)
    assert reported == {0: "worse", 1: "-", 2: "indistinguishable"}
    header = cells(table(results(bad, base, other)).splitlines()[0])
    assert header[2] == "point" and header[-2] == "against β=0.000 lr=0.001"


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
