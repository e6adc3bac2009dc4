"""Your own search space: beta, the learning rate and the share of samples with r = t.

uv run vamf tune jobs/examples/shapes_space.py --trials 8
"""

from typing import Any

import optuna

PRESET = "jobs/examples/shapes.py:SHAPES"
OBJECTIVES = ("eval/loss_variance", "eval/distance")
POINTS = (
    {"beta.value": 0.0, "optim.lr": 1e-3, "times.prob_equal": 0.5},
    {"beta.value": 1.0, "optim.lr": 1e-3, "times.prob_equal": 0.5},
)


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Points that earlier trials suggest; the same seed draws the same."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def space(trial: optuna.Trial) -> dict[str, Any]:
    """The settings of a trial, by their dotted names."""
    return {
        "beta.value": trial.suggest_float("beta.value", 0.0, 1.0),
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
        "times.prob_equal": trial.suggest_float("times.prob_equal", 0.25, 0.75),
    }
