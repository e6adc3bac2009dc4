"""A constant beta in [0, 1].

The single parameter is sampled by a scrambled Sobol sequence. It covers the interval evenly, which
shows a smooth front better than an adaptive sampler, which follows noise in the best trials.
"""

import optuna

PRESET = "digits_search"
OBJECTIVES = ("eval/loss_variance", "eval/distance")


def constant(beta: float) -> dict[str, float]:
    """The parameters of a constant beta."""
    return {"beta.value": beta}


POINTS = (constant(0.0), constant(1.0))


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Sobol points, scrambled by the seed."""
    return optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)


def space(trial: optuna.Trial) -> dict[str, float]:
    """beta, constant over training."""
    return {"beta.value": trial.suggest_float("beta.value", 0.0, 1.0)}
