"""beta that changes over training: the shape of its change, its start and end, and when it ends.

Some parameters exist only for some shapes, so the sampler is a grouped multivariate TPE.
"""

import optuna

PRESET = "digits_search"
OBJECTIVES = ("eval/loss_variance", "eval/distance")


def constant(beta: float) -> dict[str, float | str]:
    """The parameters of a beta that does not change."""
    return {"beta.shape": "constant", "beta.value": beta}


POINTS = (constant(0.0), constant(1.0))


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimators that model the parameters of each shape together."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def space(trial: optuna.Trial) -> dict[str, float | str]:
    """A constant beta, or one that changes from one value to another."""
    shape = trial.suggest_categorical("beta.shape", ["constant", "linear", "cosine", "step"])
    settings: dict[str, float | str] = {"beta.shape": str(shape)}
    settings["beta.value"] = trial.suggest_float("beta.value", 0.0, 1.0)
    if shape != "constant":
        settings["beta.end"] = trial.suggest_float("beta.end", 0.0, 1.0)
        settings["beta.finish"] = trial.suggest_float("beta.finish", 0.2, 0.9)
    return settings
