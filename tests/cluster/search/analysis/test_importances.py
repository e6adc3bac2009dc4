"""The parameters that mattered, on functions of which the shares of variance are known."""

import numpy as np
import optuna
import pytest

from vamf.cluster.search.analysis.importances import importances, lines


def study_of(count: int, *names: str) -> optuna.Study:
    """Trials of the objectives 3 a + b and b, at random points of [0, 1]."""
    study = optuna.create_study(directions=["minimize"] * 2)
    uniform = optuna.distributions.FloatDistribution(0, 1)
    points = np.random.default_rng(0).random((count, 3))
    for point in points:
        params = dict(zip(("a", "b", "c"), point, strict=True))
        values = [3 * params["a"] + params["b"], params["b"]]
        params = {name: params[name] for name in names}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict.fromkeys(params, uniform), values=values
            )
        )
    return study


@pytest.mark.slow  # many forests
def test_shares_are_those_of_the_variance() -> None:
    """Var(3 a) / Var(3 a + b) = 9 / 10."""
    found = importances(study_of(200, "a", "b", "c"), {}, ["eval/x", "eval/y"])
    assert found["eval/x"]["a"] == pytest.approx(0.9, abs=0.05)
    assert found["eval/x"]["b"] == pytest.approx(0.1, abs=0.05)
    assert found["eval/y"]["b"] > 0.95
    assert all(sum(shares.values()) == pytest.approx(1) for shares in found.values())
    assert [*found["eval/x"]] == ["a", "b", "c"]  # the largest first
    assert lines({"eval/x": {"optim.lr": 0.625, "beta": 0.375}}) == ["x: optim.lr 62%, beta 38%"]


@pytest.mark.parametrize(("count", "names"), [(9, "ab"), (10, "a")])
def test_nothing_is_said_of_few_trials_or_one_parameter(count: int, names: str) -> None:
    assert importances(study_of(count, *names), {}, ["x", "y"]) == {}
    assert importances(study_of(10, "a", "b"), {}, ["x", "y"]).keys() == {"x", "y"}


def test_the_values_over_all_seeds_count() -> None:
    """The study has those of the first seeds, here 3 a + b; those of all are b alone."""
    study = study_of(60, "a", "b")
    values = {trial.number: (trial.params["b"], trial.params["b"]) for trial in study.trials}
    assert importances(study, values, ["x", "y"])["x"]["b"] > 0.95
    assert importances(study, {}, ["x", "y"])["x"]["a"] > 0.8
