"""How much of an objective's spread over a search each varied parameter explains."""

from collections.abc import Mapping, Sequence
from functools import partial

import optuna

from vamf.cluster.ray.log_filters import quiet_optuna

FEWEST = 10
"""Complete trials below which nothing is said."""


@quiet_optuna()
def importances(
    study: optuna.Study, values: Mapping[int, Sequence[float]], objectives: Sequence[str]
) -> dict[str, Mapping[str, float]]:
    """For each objective the share of its variance that each parameter explains, largest first.

    By fANOVA (Hutter et al., 2014): a random forest is fitted to the trials, and its variance is
    decomposed; shares sum to 1. Only parameters that all trials have are compared. Empty with fewer
    than ``FEWEST`` complete trials, with fewer than two such parameters, and for an objective that
    is the same in all trials. ``values`` are the objectives by trial, over all of its seeds; the
    study has those of the first ones.
    """
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < FEWEST:
        return {}
    common = set.intersection(*({*trial.params} for trial in done))
    if len(common) < 2:
        return {}
    found: dict[str, Mapping[str, float]] = {}
    for index, name in enumerate(objectives):
        target = partial(_value, values, index)
        if len({target(trial) for trial in done}) > 1:
            found[name] = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                params=sorted(common),
                target=target,
            )
    return found


def _value(
    values: Mapping[int, Sequence[float]], index: int, trial: optuna.trial.FrozenTrial
) -> float:
    return float(values.get(trial.number, trial.values)[index])


def lines(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each objective: ``optim.lr 62 %, beta.value 30 %``."""
    return [
        f"{name.removeprefix('eval/')}: "
        + ", ".join(f"{parameter} {share:.0%}" for parameter, share in shares.items())
        for name, shares in found.items()
    ]
