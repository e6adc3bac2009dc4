"""Trainings end as they did: weights, metrics and samples of short runs of every kind."""

import json

import numpy as np
import pytest
from helpers.pinned import PINS, RUNS, run, run_by_two, run_ensemble

TOLERANCE = 2e-5
"""Of a sketch relative to its norm: twenty times what other instructions of a CPU change."""

COARSE = {"bfloat16": 500.0, "latents": 100.0}
"""By how much more the rounding of some runs shows."""

QUICK = ("digits", "toy", "oracle", "guided", "alpha", "ddpm")
"""The runs that are not left to the slow suite."""

PINNED = json.loads(PINS.read_text())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RUNS]
)
def test_a_short_training_ends_as_it_did(name, tmp_path):
    """Not to the bit: processors of one name round differently."""
    found, pinned = run(name, tmp_path), PINNED[name]
    assert found["metrics"].keys() == pinned["metrics"].keys()
    tolerance = TOLERANCE * COARSE.get(name, 1.0)
    for part in ("weights", "average", "samples"):
        close = pytest.approx(pinned[part]["sketch"], abs=tolerance * pinned[part]["norm"])
        assert found[part]["sketch"] == close
    assert found["metrics"] == pytest.approx(pinned["metrics"], rel=5 * tolerance)


def test_an_ensemble_ends_as_it_did(tmp_path):
    found, pinned = run_ensemble(tmp_path), PINNED["ensemble"]
    for name in ("sw1", "sw2", "trace"):
        assert np.array(found[name]) == pytest.approx(np.array(pinned[name]), rel=1e-4)


@pytest.mark.slow
def test_two_workers_end_as_they_did(tmp_path, local_ray):
    found, pinned = run_by_two(tmp_path), PINNED["two workers"]
    for part in ("weights", "average", "samples"):
        close = pytest.approx(pinned[part]["sketch"], abs=TOLERANCE * pinned[part]["norm"])
        assert found[part]["sketch"] == close
    assert found["metrics"] == pytest.approx(pinned["metrics"], rel=5 * TOLERANCE)
