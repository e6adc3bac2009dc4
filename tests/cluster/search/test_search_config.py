"""Labels of a search's trials, and which one is the baseline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vamf.cluster.search.search_config import Sweep
from vamf.presets import PRESETS
from vamf.tracking import Run

SWEEP = Sweep(
    directory=Path("s"),
    space="own",
    experiment=PRESETS["toy"],
    preset="toy",
    objectives=("a", "b"),
    trials=8,
    seeds=1,
    parent=Run(uri="", experiment_id="", run_id="", spool=""),
)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"beta.value": 0.5}, "β=0.500"),
        ({"beta.value": 1.0, "beta.end": 0.0, "beta.shape": "cosine"}, "β=1.000→0.000 cosine"),
        ({"beta.value": 0.0, "optim.lr": 0.00123, "batch": 64}, "β=0.000 lr=0.00123 batch=64"),
        ({"optim.lr": 1e-3, "proxy": "online"}, "lr=0.001 proxy=online"),
        (
            {"checkpoint.every": 10, "evaluation.every": 20},
            "checkpoint.every=10 evaluation.every=20",
        ),
    ],
    ids=str,
)
def test_a_label_has_all_that_was_varied(settings: dict[str, Any], label: str) -> None:
    assert SWEEP.label_of(settings) == label


def test_the_baseline_is_a_point_and_no_label() -> None:
    """beta = 0.0004 has the label of beta = 0, and so has beta = 0 with another learning rate."""
    first = {"beta.value": 0.0, "optim.lr": 1e-3}
    sweep = replace(SWEEP, baseline=first)
    assert sweep.is_baseline(dict(first))
    assert not sweep.is_baseline(first | {"beta.value": 0.0004})
    assert not sweep.is_baseline(first | {"optim.lr": 1e-2})
    assert SWEEP.is_baseline({"beta.value": 0.0})  # of an older search
    assert not SWEEP.is_baseline({"beta.value": 0.5})
