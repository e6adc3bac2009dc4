"""Chooses the points of a search that are trained with more seeds: those that decide it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vamf.cluster.search.analysis.pareto import ranks
from vamf.cluster.search.analysis.significance import UNKNOWN, verdicts
from vamf.cluster.search.budget import BudgetClock
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trials import Trial, checked
from vamf.metrics import significance

LEVELS = (2, 4, 8)
"""The seeds of a point in a search with ``front_seeds="auto"``: after each level it is tested."""
NEAR = 2
"""Points on this many fronts of non-dominated sorting are on or next to the front."""


def rate(sweep: Sweep) -> float:
    """The rate of false verdicts at which a search's points are tested.

    With ``"auto"`` a point is tested up to once a level, and each time at an equal share of the
    rate, as a test that is repeated until it is significant would be so by luck.
    """
    return significance.RATE / len(LEVELS) if sweep.front_seeds == "auto" else significance.RATE


def extra_seeds(
    sweep: Sweep, trials: Sequence[Trial], lost: Collection[int] = ()
) -> dict[int, int]:
    """How many seeds trials need that have fewer, by number; empty if there is nothing to add.

    With a number of ``front_seeds`` they are the baseline and the complete trials on the first two
    fronts. With ``"auto"`` they are those of these whose verdict is open, and the baseline with as
    many; each time the next of LEVELS. The trials ``lost`` get no more.
    """
    if sweep.front_seeds is None:
        return {}
    complete = [t for t in trials if checked(t, sweep.objectives).complete]
    chosen = [t for t in _near_the_front(complete, sweep.objectives) if t.number not in lost]
    base = [trial for trial in complete if trial.baseline and trial.number not in lost]
    near = [trial for trial in chosen if not trial.baseline]
    if sweep.front_seeds != "auto":
        return _below([*base, *near], sweep.front_seeds)
    tested = [_at_a_level(trial, sweep.seeds) for trial in complete]
    found = verdicts(tested, sweep.objectives[-1], rate(sweep))
    still_open = [t for t in near if found[t.number] in (significance.SAME, UNKNOWN)]
    if not base or not still_open:
        return {}
    fewest = min(len(trial.seeds) for trial in still_open)
    level = next((level for level in LEVELS if level > fewest), fewest)
    return _below([*base, *still_open], level)


def lacking(wanted: Mapping[int, int], trials: Sequence[Trial]) -> dict[int, int]:
    """Those of the ``wanted`` seeds, by number, that complete trials do not have."""
    have = {trial.number: len(trial.seeds) for trial in trials if trial.complete}
    return {n: seeds for n, seeds in wanted.items() if have.get(n, seeds) < seeds}


def admitted(
    wanted: Mapping[int, int], trials: Sequence[Trial], clock: BudgetClock
) -> dict[int, int]:
    """How many seeds trials have after the trainings that may start now, by number.

    With a budget each is one more training, as far as there is room, first where seeds are fewest.
    """
    if not clock.budget.limited:
        return dict(wanted)
    have, found = {trial.number: len(trial.seeds) for trial in trials}, dict[int, int]()
    for number in sorted(wanted, key=have.__getitem__):
        if clock.seed_exhausted(trials, len(found)) is not None:
            break
        found[number] = have[number] + 1
    return found


def _at_a_level(trial: Trial, first: int) -> Trial:
    """The trial with the seeds that it had when it was last tested: ``first`` or one of LEVELS.

    A budget may end between levels, and a test there would be another look.
    """
    looks = [level for level in (first, *LEVELS) if level <= len(trial.seeds)]
    return replace(trial, seeds=trial.seeds[: max(looks, default=len(trial.seeds))])


def _near_the_front(complete: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    values = np.array([[t.metrics[name].value for name in objectives] for t in complete])
    if not complete:
        return []
    return [t for t, rank in zip(complete, ranks(values), strict=True) if rank <= NEAR]


def _below(trials: Sequence[Trial], seeds: int) -> dict[int, int]:
    return {trial.number: seeds for trial in trials if len(trial.seeds) < seeds}
