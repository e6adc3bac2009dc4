"""Tells configurations apart: the protocol that runs must share, and labels of what differs."""

import dataclasses
import json
from collections.abc import Sequence
from functools import reduce
from typing import Any

from vamf import serialization
from vamf.experiment import Experiment
from vamf.serialization import KIND

PROTOCOL = ("data", "evaluation")
"""The parts of an experiment that runs must share for their metrics to be comparable."""

WITHOUT_EFFECT = (
    *("seed", "log_every", "checkpoint", "probe", "data.download", "data.memory_gb"),
    *("evaluation.every", "evaluation.distance.also", "evaluation.distance.weights"),
)
"""Settings, and parts with all their settings, that no configuration is told by: the seed, and what
changes neither the training nor the common metrics."""

ONLY = "(one configuration)"
"""The label of a configuration that is compared with no other."""


def differing(one: Experiment, other: Experiment) -> dict[str, tuple[Any, Any]]:
    """The settings of two configurations that differ, by dotted name: both values.

    Empty for replicas, which differ in their seed only.
    """
    pairs = other.differences(one)
    return {name: pair for name, pair in pairs.items() if not _within(name, WITHOUT_EFFECT)}


def other_protocol(one: Experiment, other: Experiment) -> dict[str, tuple[Any, Any]]:
    """The settings of the protocol that differ; of another kind of something only the kind."""
    pairs = {n: p for n, p in differing(one, other).items() if _within(n, PROTOCOL)}
    kinds = tuple(n.removesuffix(f".{KIND}") for n in pairs if n.endswith(f".{KIND}"))
    return {n: p for n, p in pairs.items() if n.endswith(f".{KIND}") or not _within(n, kinds)}


def labels(experiments: Sequence[Experiment]) -> list[str]:
    """A label for each of several different configurations: the settings that differ.

    Where two have another kind of something, the kind stands for its fields, except for those that
    differ from their defaults.
    """
    if len(experiments) == 1:
        return [ONLY]
    first, flat = experiments[0], [experiment.flatten() for experiment in experiments]
    names = sorted(
        {n for other in experiments for name in differing(first, other) for n in _with_parts(name)}
    )
    told = [
        {name: values[name] for name in names if _shown(name, experiment, flat)}
        for experiment, values in zip(experiments, flat, strict=True)
    ]
    short = [_text(settings, rounded=True) for settings in told]
    return short if len(set(short)) == len(short) else [_text(s, rounded=False) for s in told]


def leaf(name: str) -> str:
    """The last part of a setting's name that says what it is: ``beta``, ``lr``."""
    return name.removesuffix(".value").rpartition(".")[2]


def value_text(value: Any, *, rounded: bool = True) -> str:
    """A setting's value as it is given to `--set`; numbers with six digits if ``rounded``."""
    if isinstance(value, float) and rounded:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _text(settings: dict[str, Any], *, rounded: bool) -> str:
    return " ".join(f"{n}={value_text(v, rounded=rounded)}" for n, v in settings.items())


def _shown(name: str, experiment: Experiment, flat: Sequence[dict[str, Any]]) -> bool:
    """Whether a setting that differs somewhere belongs to this experiment's label."""
    own = experiment.flatten()
    if name not in own:
        return False
    kinds = _kinds(own, name)
    peers = [values for values in flat if name in values and _kinds(values, name) == kinds]
    if any(values[name] != own[name] for values in peers):
        return True
    if len(peers) == len(flat):
        return False
    if own[name] is None:  # where others have a part with fields
        return True
    if name.endswith(f".{KIND}"):
        return any(name.removesuffix(f".{KIND}") in values for values in flat)
    return bool(own[name] != _default(experiment, name))


def _kinds(values: dict[str, Any], name: str) -> list[Any]:
    """The kinds of the parts that a setting belongs to, without itself if it is one."""
    parts = _with_parts(name.removesuffix(f".{KIND}"))[:-1]
    return [values.get(f"{part}.{KIND}") for part in parts]


def _default(experiment: Experiment, name: str) -> Any:
    """The default of a setting in its own class, as ``flatten`` has it."""
    *parents, leaf = name.split(".")
    part = reduce(getattr, parents, experiment)
    (field,) = (f for f in dataclasses.fields(part) if f.name == leaf)
    if field.default_factory is not dataclasses.MISSING:
        return serialization.to_dict(field.default_factory())
    return serialization.to_dict(field.default)


def _with_parts(name: str) -> list[str]:
    """A setting and the parts that it belongs to, which are settings themselves where None."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def _within(name: str, parts: Sequence[str]) -> bool:
    """Whether a setting is one of these, or belongs to one of these parts."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)
