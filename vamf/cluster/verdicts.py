"""Whether points of a search differ from beta = 0, given how much seeds differ."""

from collections.abc import Sequence

import numpy as np

from vamf.cluster.trials import Trial, judged
from vamf.metrics import significance

BASELINE = "β=0.000"
"""The label of MeanFlow itself, with which every other trial is compared."""
UNKNOWN = "-"


def verdicts(trials: Sequence[Trial], objective: str) -> dict[int, str]:
    """For each trial by number: better, worse or indistinguishable; "-" without a comparison.

    Trials are paired with beta = 0 by seed; only those with as many seeds are compared. Of all that
    a search calls better or worse 5 % are expected to be luck: see `significance.verdicts`.
    """
    told = {trial.number: UNKNOWN for trial in trials}
    finite = [trial for trial in trials if judged(trial, [objective]).complete]
    base = next((trial for trial in finite if trial.label == BASELINE), None)
    if base is None:
        return told
    peers = [t for t in finite if t is not base and len(t.seeds) == len(base.seeds)]
    figures = np.array([[seed[objective] for seed in trial.seeds] for trial in (base, *peers)])
    found = significance.verdicts(figures)
    return told | {trial.number: verdict for trial, verdict in zip(peers, found, strict=True)}
