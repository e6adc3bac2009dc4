"""beta together with the guidance in the training target, for presets of networks with classes.

The first points are beta = 0 and beta = 1 with the preset's own guidance. The guidance scale is
omega / (1 - cfg_kappa). The parameters interact, so the sampler is a multivariate TPE.
"""

import optuna

PRESET = "cifar10_cond"
OBJECTIVES = ("eval/loss_variance", "eval/distance")
OWN = dict.fromkeys(("guidance.omega", "guidance.cfg_kappa", "guidance.t_min", "guidance.t_max"))
"""The preset's own guidance."""
POINTS = ({"beta.value": 0.0, **OWN}, {"beta.value": 1.0, **OWN})


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimators that model the parameters together."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def space(trial: optuna.Trial) -> dict[str, float]:
    """A constant beta, omega and kappa, and the interval of times with guidance."""
    return {
        "beta.value": trial.suggest_float("beta.value", 0.0, 1.0),
        "guidance.omega": trial.suggest_float("guidance.omega", 0.1, 2.0),
        "guidance.cfg_kappa": trial.suggest_float("guidance.cfg_kappa", 0.0, 0.95),
        "guidance.t_min": trial.suggest_float("guidance.t_min", 0.0, 0.4),
        "guidance.t_max": trial.suggest_float("guidance.t_max", 0.6, 1.0),
    }
