"""Verdicts against a baseline: how often luck is taken for an effect, and an effect is found."""

import numpy as np
import pytest
from scipy import stats

from vamf.metrics.significance import RATE, SAME, adjusted, joint_verdicts, p_values, verdicts

SIZES = [(1, 2), (2, 2), (5, 2), (1, 5), (5, 5), (20, 2)]
"""Trials beside the baseline, and seeds."""
SEARCHES = 20_000


def searches(trials: int, seeds: int, noise: str = "normal") -> np.ndarray:
    """Searches without any effect, (searches, 1 + trials, seeds); a seed's luck is shared."""
    draw, shape = np.random.default_rng(trials * 100 + seeds), (SEARCHES, 1 + trials, seeds)
    own = draw.standard_t(4, shape) if noise == "heavy" else draw.normal(size=shape)
    if noise == "one noisier":
        own[:, 1] *= 3
    return 10 + own + 3 * draw.normal(size=(SEARCHES, 1, seeds))


def at_most(level: float, events: np.ndarray) -> bool:
    """Whether the share of events is a level, or less, within 3 standard errors."""
    return bool(events.mean() <= level + 3 * (level * (1 - level) / len(events)) ** 0.5)


@pytest.mark.parametrize(("trials", "seeds"), SIZES)
@pytest.mark.parametrize("noise", ["normal", "heavy"])
def test_chance_is_reported_as_an_effect_in_one_search_of_twenty(
    trials: int, seeds: int, noise: str
) -> None:
    found = adjusted(searches(trials, seeds, noise)) < RATE
    assert at_most(RATE, found.any(1))  # without any effect every discovery is false
    for trial in found.T:
        assert at_most(RATE, trial)


@pytest.mark.parametrize(("trials", "seeds"), SIZES)
def test_single_tests_hold_their_level(trials: int, seeds: int) -> None:
    found = p_values(searches(trials, seeds))
    for level in (0.01, 0.05, 0.2):
        for trial in found.T:
            assert at_most(level, trial < level)


@pytest.mark.parametrize(("trials", "seeds"), SIZES)
def test_one_trial_with_three_times_the_noise_raises_few_alarms(trials: int, seeds: int) -> None:
    """Noise is pooled, so the level is not exact; it was a third to two thirds of searches."""
    found = adjusted(searches(trials, seeds, "one noisier")) < RATE
    assert at_most(0.08, found.any(1))


def test_few_of_the_reported_differences_are_chance() -> None:
    """Of ten trials five have an effect; the false share is taken over each search."""
    figures = searches(10, 3)
    figures[:, 1:6] -= 6
    found = adjusted(figures) < RATE
    false = found[:, 5:].sum(1) / np.maximum(found.sum(1), 1)
    assert false.mean() <= RATE + 3 * false.std() / SEARCHES**0.5
    assert found[:, :5].mean() > 0.9


@pytest.mark.parametrize(
    ("trials", "seeds", "effect"), [(1, 2, 80), (2, 2, 20), (5, 2, 10), (20, 2, 8), (5, 5, 4)]
)
def test_a_large_effect_is_found_with_its_sign(trials: int, seeds: int, effect: float) -> None:
    """In units of a training's standard deviation: two seeds need a large one."""
    for sign, verdict in ((-1, "better"), (1, "worse")):
        figures = searches(trials, seeds)[:200]
        figures[:, 1] += sign * effect
        assert np.mean([verdicts(search)[0] == verdict for search in figures]) > 0.9


def test_each_search_is_adjusted_by_itself() -> None:
    """Benjamini and Hochberg by hand: the least of n p / rank from each rank on."""
    many = searches(6, 3)[:5]
    for search, found in zip(many, adjusted(many), strict=True):
        p = p_values(search)
        assert found.shape == p.shape == (6,)
        np.testing.assert_allclose(found, adjusted(search))
        order = p.argsort()
        scaled = 6 * p[order] / np.arange(1, 7)
        expected = [min(1.0, scaled[rank:].min()) for rank in range(6)]
        np.testing.assert_allclose(found[order], expected)


def test_one_trial_is_tested_as_students_paired_test_does() -> None:
    figures = searches(1, 4)[:20]
    theirs = stats.ttest_rel(figures[:, 1], figures[:, 0], axis=1).pvalue
    np.testing.assert_allclose(p_values(figures)[:, 0], theirs)


def test_the_variance_is_that_of_a_two_way_layout() -> None:
    """By hand: residuals are 1/4 in size in two rows and 0 in the third."""
    figures = np.array([[0.0, 10.0], [3.0, 12.0], [1.5, 11.0]])
    # Rows less their means: -5, 5; -4.5, 4.5; -4.75, 4.75. Less their mean:
    # -.25, .25; .25, -.25; 0, 0.
    pooled = 2 * (4 * 0.25**2) / 2
    means = np.array([2.5, 1.25])
    own = np.array([0.5, 0.125])  # of the differences 3, 2 and 1.5, 1
    t = means / np.sqrt(np.maximum(pooled, own) / 2)
    np.testing.assert_allclose(p_values(figures), 2 * stats.t.sf(t, 2))


def test_what_is_not_finite_is_lost_and_changes_no_other_verdict() -> None:
    figures = np.array([[9.0, 9.2, 9.1], [6.0, 6.4, 6.1], [9.3, 8.9, 9.2]])
    assert verdicts(figures) == ["better", "indistinguishable"]
    for bad in (np.nan, np.inf, -np.inf):
        row = np.array([[1.0, bad, 1.0]])
        assert verdicts(np.concatenate([figures, row])) == ["better", "indistinguishable", "lost"]
        assert verdicts(np.concatenate([row, figures])) == ["lost"] * 3


def test_seeds_without_luck_raise_no_warning() -> None:
    """Differences without any variance are divided by 0, and 0 by 0."""
    with np.errstate(all="raise"):
        assert verdicts(np.array([[9.0, 8.0], [5.0, 4.0], [9.0, 8.0]]))[0] == "better"


def test_seeds_without_luck_and_single_seeds() -> None:
    assert verdicts(np.array([[9.0, 8.0], [9.0, 8.0]])) == ["indistinguishable"]
    assert verdicts(np.array([[9.0, 8.0], [5.0, 4.0], [9.0, 8.0]])) == [
        "better",
        "indistinguishable",
    ]
    assert verdicts(np.array([[9.0], [5.0]])) == ["indistinguishable"]
    assert verdicts(np.array([[9.0, 8.0]])) == []


def test_tables_share_one_rate_of_false_verdicts() -> None:
    one, two = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert joint_verdicts([one]) == [verdicts(one)]
    two = np.add(two, [[0], [3], [9]])
    p = np.concatenate([p_values(one), p_values(two)])
    found = joint_verdicts([one, two])
    differs = [verdict != SAME for row in found for verdict in row]
    assert differs == [*(stats.false_discovery_control(p) < RATE)]
    assert any(differs) and joint_verdicts([]) == []
