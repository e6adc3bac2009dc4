"""The objective together with beta: MeanFlow or alpha-Flow, and the power of the adaptive weight.

The first points are MeanFlow with beta = 0 and beta = 1, and alpha-Flow as published, each with the
preset's own weight. How long alpha-Flow takes to become MeanFlow is a parameter of alpha-Flow only,
so the sampler is a grouped multivariate TPE. Loss variances are those of each objective's own loss.
"""

import optuna

PRESET = "digits_search"
OBJECTIVES = ("eval/loss_variance", "eval/distance")
MEANFLOW = {"loss.kind": "MeanFlowLoss", "loss.weight.p": None}
ALPHA_FLOW = {"loss.kind": "AlphaFlowLoss", "loss.weight.p": None, "loss.alpha.finish": 1.0}
POINTS = (
    {**MEANFLOW, "beta.value": 0.0},
    {**MEANFLOW, "beta.value": 1.0},
    {**ALPHA_FLOW, "beta.value": 0.0},
)


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimators that model the parameters of each objective together."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def space(trial: optuna.Trial) -> dict[str, float | str]:
    """The objective, beta, the power of the weight, and the end of alpha-Flow's transition."""
    kind = trial.suggest_categorical("loss.kind", ["MeanFlowLoss", "AlphaFlowLoss"])
    settings: dict[str, float | str] = {"loss.kind": str(kind)}
    settings["beta.value"] = trial.suggest_float("beta.value", 0.0, 1.0)
    settings["loss.weight.p"] = trial.suggest_float("loss.weight.p", 0.0, 1.0)
    if kind == "AlphaFlowLoss":
        settings["loss.alpha.finish"] = trial.suggest_float("loss.alpha.finish", 0.3, 1.0)
    return settings
