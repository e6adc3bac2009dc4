"""A search over beta read off a smooth fit, and what a landscape adds to a search."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from vamf.cluster.search.analysis.beta_curve import smooth
from vamf.cluster.search.analysis.plots import bar, plot, wide
from vamf.cluster.search.analysis.results import Results
from vamf.cluster.search.study import BETA_STAR, follow_landscape
from vamf.cluster.search.trials import Trial, trial_folder
from vamf.metrics.distances import Measurement

NAMES = ("eval/loss_variance", "eval/fd")


def trial(number: int, beta: float, variance: float, distance: float) -> Trial:
    figures = (Measurement(variance, 0.1 * variance), Measurement(distance, 0.1))
    metrics = dict(zip(NAMES, figures, strict=True))
    return Trial(number=number, settings={"beta.value": beta}, label="", metrics=metrics)


def searched(noise: float, seed: int, n: int = 16) -> list[Trial]:
    """Loss variance falls with beta, the distance is lowest at beta = 0.6."""
    draw = np.random.default_rng(seed)
    return [
        trial(
            k,
            beta,
            float(np.exp(2 - 3 * beta + noise * draw.normal())),
            float(5 + 4 * (beta - 0.6) ** 2 + noise * draw.normal()),
        )
        for k, beta in enumerate(np.linspace(0, 1, n))
    ]


def test_without_noise_the_curves_go_through_the_trials() -> None:
    found = smooth(searched(0.0, 0), NAMES)
    assert found is not None and found.best == pytest.approx(0.6, abs=0.02)
    for curve, expected in zip(
        found.curves,
        (np.exp(2 - 3 * found.betas), 5 + 4 * (found.betas - 0.6) ** 2),
        strict=True,
    ):
        np.testing.assert_allclose(curve.mean, expected, rtol=0.02)
    # Variance always falls: beyond the best distance each beta trades one for the other.
    np.testing.assert_array_equal(found.front, found.betas >= found.best)


@pytest.mark.slow  # many fits
def test_the_fit_is_nearer_the_truth_than_the_luckiest_trial() -> None:
    lost, lost_by_winner = [], []
    for seed in range(12):
        trials = searched(0.2, seed)
        found = smooth(trials, NAMES)
        assert found is not None and found.interval[0] <= found.best <= found.interval[1]
        winner = min(trials, key=lambda t: t.metrics["eval/fd"].value)
        lost.append(4 * (found.best - 0.6) ** 2)
        lost_by_winner.append(4 * (winner.settings["beta.value"] - 0.6) ** 2)
    assert np.mean(lost) < 0.75 * np.mean(lost_by_winner)


def test_no_curve_for_few_points_or_other_parameters() -> None:
    trials = searched(0.1, 0)
    assert smooth(trials[:3], NAMES) is None
    other = Trial(number=9, settings={"beta.value": 0.1, "beta.shape": "constant"}, label="")
    assert smooth([*trials, other], NAMES) is None


@pytest.mark.parametrize("n", [2, 12])
def test_the_plot_is_drawn_with_and_without_curves(tmp_path: Path, n: int) -> None:
    trials = searched(0.1, 0, n)
    found = Results(
        objectives=NAMES,
        trials=trials,
        front=frozenset({0, n - 1}),
        hypervolume=1.0,
        reference=(1.0, 1.0),
    )
    plot(found, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 5000
    rows = 1 if n == 2 else 2  # of two panels: trials, growth of their front, two curves
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size == (1440, 600 * rows)


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1.0, 10.0], False),
        ([1.0, 5.0, 10.1], True),
        ([0.5, 0.01], True),
        ([0.0, 1.0], False),
        ([-1.0, 100.0], False),
        ([3.0], False),
        ([], False),
    ],
)
def test_axes_of_more_than_a_factor_of_ten_are_logarithmic(
    values: list[float], logarithmic: bool
) -> None:
    assert wide(values) == logarithmic


def test_an_unknown_error_has_no_bar() -> None:
    assert bar(0.5) == 0.5 and bar(float("nan")) is None and bar(float("inf")) is None


def test_the_landscapes_beta_star_is_tried_next(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="s", storage=storage, directions=["minimize"] * 2)
    sweep = SimpleNamespace(directory=tmp_path, name="s", storage=storage, study="")
    space = SimpleNamespace(POINTS=({}, {}), constant=lambda beta: {"beta.value": beta})
    stars = {0: 0.834, 1: 0.831, 2: 0.4}  # the second is the same point, the third is no first one
    for number, star in stars.items():
        metrics = {BETA_STAR: Measurement(star, 0.1)}
        Trial(number=number, settings={}, label="", metrics=metrics).save(
            trial_folder(tmp_path, number)
        )
        follow_landscape(space, sweep, number)  # type: ignore[arg-type]
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert [t.system_attrs["fixed_params"] for t in waiting] == [{"beta.value": 0.83}]
    assert study.ask().suggest_float("beta.value", 0, 1) == 0.83


@pytest.mark.parametrize("star", [None, float("nan"), -0.1, 1.1])
def test_a_landscape_without_a_minimum_adds_no_point(tmp_path: Path, star: float | None) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="s", storage=storage, directions=["minimize"] * 2)
    sweep = SimpleNamespace(directory=tmp_path, name="s", storage=storage, study="")
    space = SimpleNamespace(POINTS=({},), constant=lambda beta: {"beta.value": beta})
    metrics = {} if star is None else {BETA_STAR: Measurement(star, 0.0)}
    Trial(number=0, settings={}, label="", metrics=metrics).save(trial_folder(tmp_path, 0))
    follow_landscape(space, sweep, 0)  # type: ignore[arg-type]
    assert study.get_trials() == []
