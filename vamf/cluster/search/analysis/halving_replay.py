"""Replays recorded training curves under a rule of halving: what it would have lost and saved."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from vamf.cluster.search.analysis.pareto import front, hypervolume
from vamf.cluster.search.halving import Halving, beaten
from vamf.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The objectives of trials that were all trained to their end, over their training."""

    objectives: tuple[str, ...]
    """Their names; the last is the distance."""
    steps: tuple[int, ...]
    """The steps at which they were measured, of which the last is the end."""
    values: list[list[list[float]]]
    """(trials, steps, objectives), in the order of the trials."""
    baseline: int | None
    """The trial that never ends early, if there is one."""
    settings: list[dict[str, Any]] = field(default_factory=list)
    """What was varied in each trial."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """How they were recorded: command, machine, seconds."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what ``save`` wrote."""
        data = json.loads(path.read_text())
        return cls(**data | {name: tuple(data[name]) for name in ("objectives", "steps")})

    def save(self, path: Path) -> None:
        """Writes them as JSON."""
        write_whole(path, json.dumps(asdict(self)) + "\n")

    @property
    def ends(self) -> np.ndarray:
        """The objectives at the end, (trials, objectives)."""
        return np.array([curve[-1] for curve in self.values])


class Replay(NamedTuple):
    """What is left of a search with halving."""

    complete: frozenset[int]
    """The trials that are trained to their end."""
    steps: int
    """The steps that all trials take together."""


def replay(curves: Curves, halving: Halving, order: Sequence[int]) -> Replay:
    """Runs the trials in an order.

    It does not matter how many run at a time, if all are equally fast: at a rung each is compared
    with those that were started before it and came so far. Raises ValueError for a rung at which
    nothing was measured.
    """
    if wrong := [rung for rung in halving.rungs if rung not in curves.steps[:-1]]:
        raise ValueError(f"rungs must be of {curves.steps[:-1]}; got {wrong[0]}")
    reached: dict[int, list[list[float]]] = {rung: [] for rung in halving.rungs}
    complete, spent = set[int](), 0
    for trial in order:
        step = curves.steps[-1]
        for rung in halving.rungs:
            values = curves.values[trial][curves.steps.index(rung)]
            why = beaten(values, reached[rung], halving.keep)
            reached[rung].append(values)
            if why is not None and trial != curves.baseline:
                step = rung
                break
        else:
            complete.add(trial)
        spent += step
    return Replay(frozenset(complete), spent)


class Risk(NamedTuple):
    """What a rule costs and saves, averaged over random orders of the trials."""

    best_lost: float
    """How often the trial with the smallest last objective, the distance, ends early."""
    front_lost: float
    """The share of the front's trials that end early."""
    hypervolume: float
    """The hypervolume of what is left, as a share of that of all trials."""
    saved: float
    """The share of the steps that is not trained."""


def risk(curves: Curves, halving: Halving, *, orders: int = 200) -> Risk:
    """What a rule would have lost and saved.

    The baseline comes first, as in a search, and the other trials in random orders.
    """
    ends, random = curves.ends, np.random.default_rng(0)
    best, on_front = int(ends[:, -1].argmin()), set(np.flatnonzero(front(ends)).tolist())
    first = [] if curves.baseline is None else [curves.baseline]
    others = [trial for trial in range(len(ends)) if trial not in first]
    reference = ends.max(0) + 0.1 * np.abs(ends.max(0))
    volume, whole = hypervolume(ends, reference), len(ends) * curves.steps[-1]
    found = []
    for _ in range(orders):
        left = replay(curves, halving, [*first, *random.permutation(others).tolist()])
        kept = ends[sorted(left.complete)]
        found.append(
            [
                best not in left.complete,
                1 - len(on_front & left.complete) / len(on_front),
                hypervolume(kept, reference) / volume,
                1 - left.steps / whole,
            ]
        )
    return Risk(*np.mean(found, axis=0).tolist())
