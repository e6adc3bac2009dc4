"""The interface of search spaces, and checks that one fits an experiment."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import optuna

from vamf import serialization
from vamf.cluster.ray.log_filters import quiet_optuna
from vamf.errors import first_line
from vamf.experiment import Experiment

DISTANCE = "eval/distance"
"""In a space's objectives: the distance that the experiment measures."""


class Space(Protocol):
    """A module that says which settings are drawn, and what is minimised."""

    PRESET: str
    """Name of the preset to vary, unless another one is asked for."""
    OBJECTIVES: Sequence[str]
    """Metrics to minimise, two or more; ``eval/distance`` is the preset's distance.

    Trials are ranked and tested by the distance, or without it by the last one.
    """
    POINTS: Sequence[Mapping[str, Any]]
    """Parameters to try first. The first of them is the baseline, with which verdicts compare. A
    value None is the experiment's own, if the parameter has the name of a setting."""

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler that suits the space; the same seed draws the same points."""
        ...

    def constant(self, beta: float) -> Mapping[str, Any]:
        """The parameters of a constant beta, by which beta* of the first landscapes is tried.

        Optional: without it beta* is not tried.
        """
        ...

    NAMED: Mapping[str, Mapping[str, Any]]
    """Names of settings that ``space`` returns, by which tables and MLflow call their trials.

    Optional.
    """

    def space(self, trial: optuna.Trial) -> Mapping[str, Any]:
        """Draws the settings of a trial: dotted names of the experiment, and their values."""
        ...


def objectives(space: Space, experiment: Experiment) -> tuple[str, ...]:
    """The full names of a space's objectives; the last one decides: the distance, if it is one.

    Raises ValueError for a metric that is not measured.
    """
    if not experiment.loss.learns_velocity:
        raise ValueError(f"a search needs an objective that has a beta; got {experiment.loss}")
    distance = f"eval/{experiment.evaluation.distance.key}"
    known = (distance, "eval/loss_variance", "eval/gradient_variance")
    names = tuple(distance if name == DISTANCE else name for name in space.OBJECTIVES)
    for name in names:
        if name not in known:
            raise ValueError(
                f"objective {name!r} is not measured{serialization.nearest(name, known)}"
            )
    if len(set(names)) < 2:
        raise ValueError(f"a search needs at least two objectives; got {', '.join(names)}")
    return tuple(sorted(names, key=lambda name: name == distance))


def points(space: Space, experiment: Experiment) -> list[dict[str, Any]]:
    """A space's first points for an experiment.

    Raises ValueError if a point takes a value from the experiment that it does not have.
    """
    own, found = experiment.flatten(), []
    for point in space.POINTS:
        lacking = [name for name, value in point.items() if value is None and name not in own]
        if lacking:
            raise ValueError(
                f"the search space does not fit the experiment: it has no {lacking[0]}"
                f"{serialization.nearest(lacking[0], own)}"
            )
        found.append({name: own[name] if v is None else v for name, v in point.items()})
    return found


@quiet_optuna()
def baseline(space: Space, experiment: Experiment) -> dict[str, Any] | None:
    """The settings of a space's first point; None if it has none.

    Raises ValueError if it lacks a parameter, or if one is outside of its range.
    """
    if not space.POINTS:
        return None
    first = points(space, experiment)[0]
    point = optuna.trial.FixedTrial(first)
    try:
        settings = dict(space.space(cast(optuna.Trial, point)))
        optuna.trial.create_trial(params=point.params, distributions=point.distributions, value=0.0)
    except ValueError as error:
        raise ValueError(
            "a space's first point must give all its parameters, each in its range; "
            f"got {first}: {first_line(error)}"
        ) from None
    return settings


@quiet_optuna()
def check(space: Space, experiment: Experiment, draws: int = 8) -> None:
    """Raises ValueError if the space suggests what the experiment does not take.

    Nor may it suggest a relative path: trials run in other folders.
    """
    placed = experiment.located()
    study = optuna.create_study(
        directions=["minimize"] * len(space.OBJECTIVES),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for point in points(space, experiment):
        study.enqueue_trial(point)
    for _ in range(len(space.POINTS) + draws):
        try:
            own = placed.override(dict(space.space(study.ask())))
        except ValueError as error:
            raise ValueError(f"the search space does not fit the experiment: {error}") from error
        before, after = (serialization.flatten(e.to_dict()) for e in (own, own.located()))
        if relative := [f"{name}={before[name]}" for name in before if before[name] != after[name]]:
            raise ValueError(
                "a search space's paths must be absolute, as trials run in other folders; "
                f"got {', '.join(relative)}"
            )
