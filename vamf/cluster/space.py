"""What a search space must provide, and whether it fits an experiment."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import optuna

from vamf import values
from vamf.cluster.quiet import quiet_optuna
from vamf.experiment import Experiment

DISTANCE = "eval/distance"
"""Stands for the experiment's own distance, whichever that is, in a space's objectives."""


class Space(Protocol):
    """A module of search: which settings are drawn, and what is minimised."""

    PRESET: str
    """Name of the preset to vary, unless another one is asked for."""
    OBJECTIVES: Sequence[str]
    """Figures to minimise, two or more; ``eval/distance`` is the preset's own distance."""
    POINTS: Sequence[Mapping[str, Any]]
    """Parameters to try first."""

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler that suits the space; the same seed draws the same points."""
        ...

    def constant(self, beta: float) -> Mapping[str, Any]:
        """The parameters of a constant beta: how the first landscapes' beta* enters the search.

        It may be left out; then they do not.
        """
        ...

    def space(self, trial: optuna.Trial) -> Mapping[str, Any]:
        """Draws the settings of a trial: dotted names of the experiment, and their values."""
        ...


def objectives(space: Space, experiment: Experiment) -> tuple[str, ...]:
    """The full names of a space's objectives; ValueError for a figure that is not measured."""
    if experiment.ddpm is not None:
        raise ValueError(f"a search needs an objective that has a beta; got {experiment.ddpm}")
    distance = f"eval/{experiment.evaluation.distance.key}"
    known = (distance, "eval/loss_variance", "eval/gradient_variance")
    names = tuple(distance if name == DISTANCE else name for name in space.OBJECTIVES)
    for name in names:
        if name not in known:
            raise ValueError(f"objective {name!r} is not measured{values.nearest(name, known)}")
    if len(set(names)) < 2:
        raise ValueError(f"a search needs at least two objectives; got {', '.join(names)}")
    return names


@quiet_optuna()
def check(space: Space, experiment: Experiment, draws: int = 8) -> None:
    """Raises ValueError if the space suggests what the experiment does not take."""
    study = optuna.create_study(
        directions=["minimize"] * len(space.OBJECTIVES),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for point in space.POINTS:
        study.enqueue_trial(dict(point))
    for _ in range(len(space.POINTS) + draws):
        try:
            experiment.override(dict(space.space(study.ask())))
        except ValueError as error:
            raise ValueError(f"the search space does not fit the experiment: {error}") from error
