"""The objectives that are compared with each other, by name."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vamf.experiment import Experiment
from vamf.training.advice import LEAST

PLAIN = {"beta.kind": "BetaSchedule", "beta.value": 0.0, "proxy": "ema"}
OWN = PLAIN | {"beta.value": 1.0, "proxy": "online"}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "MeanFlow": {**PLAIN, "loss.kind": "MeanFlowLoss"},
    "beta 0.5, moving average": {**PLAIN, "loss.kind": "MeanFlowLoss", "beta.value": 0.5},
    "beta 1, own velocity": {**OWN, "loss.kind": "MeanFlowLoss"},
    "beta 1, batch's velocity": {**OWN, "loss.kind": "MeanFlowLoss", "proxy": "batch"},
    "gamma 0.5, own velocity": {**OWN, "loss.kind": "MeanFlowLoss", "loss.gamma": 0.5},
    "alpha-Flow": {**PLAIN, "loss.kind": "AlphaFlowLoss"},
    "semigroup": {**PLAIN, "loss.kind": "SemigroupLoss", "loss.weight.p": 0.0},
    "terminal velocity": {
        **PLAIN,
        "loss.kind": "TerminalVelocityLoss",
        "compute.compile": False,
    },
    "terminal velocity, stopped": {
        **PLAIN,
        "loss.kind": "TerminalVelocityLoss",
        "loss.stop_derivative": True,
    },
}
"""The settings of each one-step objective. The first is what the others are compared with. With an
adaptive weight a semigroup learns nothing, as its samples with r < t, of small errors, outweigh the
data."""

BASELINE = next(iter(METHODS))

DISTILLATION: Mapping[str, Any] = {
    "beta.kind": "BetaSchedule",
    "beta.value": 1.0,
    "proxy": "reference",
    "loss.kind": "MeanFlowLoss",
    "loss.gamma": 1.0,
}
"""Those of the distillation of a trained flow, whose velocity is both tangent and target."""

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    **METHODS,
    "flow matching": {
        **METHODS[BASELINE],
        "times.prob_equal": 1.0,
        "evaluation.sampler": "heun",
        "evaluation.sampling_steps": 25,
    },
}
"""The objectives, and flow matching with 50 evaluations of the network as a control."""


def methods(experiment: Experiment) -> Mapping[str, Mapping[str, Any]]:
    """``METHODS``, and the distillation of the experiment's reference if it has one."""
    distilled = {"distillation, gamma 1": DISTILLATION} if experiment.reference else {}
    return {**METHODS, **distilled}


def changes(experiment: Experiment, name: str) -> dict[str, Any]:
    """The settings of an objective, with the experiment's weights of samples, if it has no own.

    In bfloat16 alpha-Flow takes the derivative below the alpha over which a difference is useful.
    A reference has an absolute path.
    """
    weight = asdict(experiment.loss.weight)
    own = {**OBJECTIVES, **methods(experiment)}[name]
    found = {f"loss.weight.{key}": value for key, value in weight.items()} | {**own}
    if reference := experiment.reference:
        found["reference"] = str(reference.absolute()) if own["proxy"] == "reference" else None
    if found["loss.kind"] == "AlphaFlowLoss" and experiment.compute.precision == "bfloat16":
        found["loss.alpha.clamp"] = LEAST
    return found


def file_name(objective: str) -> str:
    """An objective's name in a file name: "alpha-Flow" is "alpha_flow"."""
    return re.sub(r"\W+", "_", objective.lower())
