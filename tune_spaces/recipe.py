"""beta together with what it may depend on: its proxy, the share of r = t and the learning rate.

The first points are beta = 0 and beta = 1 with the preset's own values of the others. The
parameters interact, so the sampler is a multivariate TPE.
"""

import optuna

PRESET = "digits_search"
OBJECTIVES = ("eval/loss_variance", "eval/distance")
OWN = dict.fromkeys(("proxy", "times.prob_equal", "optim.lr"))
"""The preset's own values."""
POINTS = ({"beta.value": 0.0, **OWN}, {"beta.value": 1.0, **OWN})


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimators that model the parameters together."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def space(trial: optuna.Trial) -> dict[str, float | str]:
    """A constant beta, the proxy, P(r = t) and the learning rate."""
    return {
        "beta.value": trial.suggest_float("beta.value", 0.0, 1.0),
        "proxy": str(trial.suggest_categorical("proxy", ["ema", "online"])),
        "times.prob_equal": trial.suggest_float("times.prob_equal", 0.0, 0.9),
        "optim.lr": trial.suggest_float("optim.lr", 1e-5, 1e-2, log=True),
    }
