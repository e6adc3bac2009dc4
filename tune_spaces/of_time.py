"""beta as a function of a sample's time t: linear between its values at data, half-way and noise.

The three parameters interact, so the sampler is a multivariate TPE.
"""

import optuna

PRESET = "digits_search"
OBJECTIVES = ("eval/loss_variance", "eval/distance")
NAMES = ("beta.at_data", "beta.at_half", "beta.at_noise")


def constant(beta: float) -> dict[str, float]:
    """The parameters of a beta that does not depend on t."""
    return dict.fromkeys(NAMES, beta)


POINTS = (constant(0.0), constant(1.0))


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimators that model the three values together."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def space(trial: optuna.Trial) -> dict[str, float | str]:
    """beta at t = 0, 1/2 and 1."""
    values = {name: trial.suggest_float(name, 0.0, 1.0) for name in NAMES}
    return {"beta.kind": "BetaOfTime", **values}
