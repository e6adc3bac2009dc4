"""Tests whether points of a search differ from its baseline by more than seeds do."""

from collections.abc import Mapping, Sequence

import numpy as np

from vamf.cluster.search.trials import Trial, checked
from vamf.metrics import significance

UNKNOWN = "-"
"""The verdict on values that have fewer than two seeds in common with the baseline's."""


def verdicts(
    trials: Sequence[Trial], objective: str, rate: float = significance.RATE
) -> dict[int, str]:
    """For each trial by number: better, worse or indistinguishable; "-" without a comparison.

    Trials are paired with the baseline by the seeds that both have. Of all trials called better or
    worse a share ``rate`` is expected to be false: see `significance.verdicts`.
    """
    unknown = {trial.number: UNKNOWN for trial in trials}
    finite = [trial for trial in trials if checked(trial, [objective]).complete]
    base = next((trial for trial in finite if trial.baseline), None)
    if base is None:
        return unknown
    peers = [trial for trial in finite if trial is not base]
    values = [dict(enumerate(s[objective] for s in t.seeds)) for t in (base, *peers)]
    found = paired_verdicts(values, rate)
    return unknown | {trial.number: verdict for trial, verdict in zip(peers, found, strict=True)}


def paired_verdicts(
    values: Sequence[Mapping[int, float]], rate: float = significance.RATE
) -> list[str]:
    """How each row but the first compares with the first, of values by seed; smaller is better.

    Rows that have the same seeds in common with the first are tested together; the rate of false
    verdicts is that over all rows.
    """
    base, found = values[0], [UNKNOWN] * (len(values) - 1)
    tables: dict[tuple[int, ...], list[int]] = {}
    for index, own in enumerate(values[1:]):
        common = tuple(sorted(base.keys() & own.keys()))
        if len(common) > 1:
            tables.setdefault(common, []).append(index)
    arrays = [
        np.array([[row[seed] for seed in seeds] for row in (base, *(values[1 + i] for i in rows))])
        for seeds, rows in tables.items()
    ]
    judged = significance.joint_verdicts(arrays, rate)
    for rows, verdicts in zip(tables.values(), judged, strict=True):
        for index, verdict in zip(rows, verdicts, strict=True):
            found[index] = verdict
    return found
