"""Halving replayed on recorded curves: what ends, what it saves; it is the rule of searches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vamf import reproduction
from vamf.cluster.search.analysis.halving_replay import Curves, replay, risk
from vamf.cluster.search.halving import Halving, ParetoPruner
from vamf.metrics.distances import Measurement
from vamf.reproduction import halving
from vamf.run_layout import trial_name

RULE = Halving(rungs=(10, 20), keep=0.5)


def curves(values: np.ndarray, *, baseline: int | None = None) -> Curves:
    """Of trials measured at steps 10, 20, 30."""
    return Curves(
        objectives=("a", "b"), steps=(10, 20, 30), values=values.tolist(), baseline=baseline
    )


def constant(*levels: float) -> Curves:
    """Trials whose objectives never change and are both the same."""
    return curves(np.array(levels)[:, None, None] * np.ones((1, 3, 2)))


def random_curves(count: int, seed: int) -> Curves:
    return curves(np.random.default_rng(seed).random((count, 3, 2)))


def test_the_beaten_half_ends_at_the_first_rung() -> None:
    """Trials come as 1, 2, 3, 0: the second is second of 2, the third of 3, the last is first."""
    found = replay(constant(1, 2, 3, 0), RULE, [0, 1, 2, 3])
    assert found.complete == {0, 3} and found.steps == 30 + 10 + 10 + 30
    # Level 2 is second of 3 at the first rung, and last of 2 at the second.
    backwards = replay(constant(1, 2, 3, 0), RULE, [3, 2, 1, 0])
    assert backwards.complete == {0, 3} and backwards.steps == 30 + 10 + 20 + 30
    assert replay(constant(1, 2, 3, 0), Halving(), [0, 1, 2, 3]).steps == 4 * 30


def test_the_baseline_never_ends() -> None:
    beaten = constant(0, 1)
    assert replay(beaten, RULE, [0, 1]).complete == {0}
    assert replay(replace(beaten, baseline=1), RULE, [0, 1]).complete == {0, 1}


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_rule_that_searches_obey(tmp_path: Path, seed: int) -> None:
    """Trials one after the other, by the files that they write in a real search."""
    known = random_curves(12, seed)
    left, steps = set(), 0
    for number, curve in enumerate(known.values):
        (tmp_path / trial_name(number)).mkdir()
        pruner = ParetoPruner(
            halving=RULE, sweep=tmp_path, trial=number, objectives=("a", "b"), never_ends=False
        )
        for step, values in zip(known.steps, curve, strict=True):
            metrics = {n: Measurement(v, 0.0) for n, v in zip("ab", values, strict=True)}
            if step not in RULE.rungs:
                left.add(number)
            elif pruner(step, metrics, 0.0) is not None:
                break
        steps += step
    assert replay(known, RULE, range(12)) == (left, steps)


def test_risks_are_those_of_curves_whose_end_is_known() -> None:
    """Constant curves lose nothing; curves that cross at the end lose their best trial."""
    levels = np.linspace(1, 2, 20)
    found = risk(constant(*levels), RULE)
    assert (found.best_lost, found.front_lost, found.hypervolume) == (0, 0, 1)
    assert 0.3 < found.saved < 2 / 3
    crossed = np.stack([levels, levels, levels[::-1]], 1)[..., None] * np.ones(2)
    lost = risk(curves(crossed), RULE)
    assert lost.best_lost > 0.9 and lost.front_lost > 0.9 and lost.hypervolume < 1
    assert lost.saved == pytest.approx(found.saved)
    assert risk(curves(crossed), Halving()) == (0, 0, 1, 0)


def test_a_rung_without_a_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rungs must be of \(10, 20\); got 15"):
        replay(constant(1), Halving(rungs=(15,)), [0])


def test_curves_survive_a_file(tmp_path: Path) -> None:
    known = random_curves(3, 0)
    known.save(tmp_path / "curves.json")
    assert Curves.load(tmp_path / "curves.json") == known


@pytest.mark.parametrize(("name", "half"), [("digits", 200), ("mnist", 500)])
def test_the_published_rows_are_those_of_the_recorded_curves(name: str, half: int) -> None:
    known = Curves.load(halving.CURVES / f"{name}.json")
    assert len(known.values) == 30 and known.baseline == 0
    text = (Path(reproduction.__file__).parent / "RESULTS.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    for keep in (0.5, 0.7):
        assert halving.row(known, Halving(rungs=(half,), keep=keep)) in rows
