"""A constant beta in [0, 1].

One continuous parameter: a scrambled Sobol sequence covers it evenly, which serves a smooth reading
of the front better than an adaptive sampler that chases noisy winners.
"""

import optuna

PRESET = "digits_search"
OBJECTIVES = ("eval/loss_variance", "eval/distance")


def constant(beta: float) -> dict[str, float]:
    """The parameters of this beta."""
    return {"beta.value": beta}


POINTS = (constant(0.0), constant(1.0))


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Sobol points; the seed scrambles them."""
    return optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)


def space(trial: optuna.Trial) -> dict[str, float]:
    """beta, constant over training."""
    return {"beta.value": trial.suggest_float("beta.value", 0.0, 1.0)}
