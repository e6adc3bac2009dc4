"""A run frees its memory at the end, so one process can train many runs."""

import gc
import weakref

import pytest

from vamf.errors import NonFiniteLoss
from vamf.presets import PRESETS
from vamf.training.loop import Session, train

TINY = {
    "steps": 2,
    "batch": 8,
    "probe.every": 2,
    "probe.pairs": 2,
    "evaluation.variance_samples": 4,
    "evaluation.gradient_batches": 2,
}
POINTS = PRESETS["toy"].override(
    {**TINY, "evaluation.distance.samples": 16, "evaluation.distance.directions": 4}
)
IMAGES = PRESETS["digits"].override(
    {**TINY, "model.channels": 4, "evaluation.distance.samples": 40, "log_every": 1}
)


def held(experiment, directory):
    """Weak references to the objects of a run."""
    found = []

    def watch(objective):
        found.extend(map(weakref.ref, (objective, objective.net, next(objective.net.parameters()))))
        return objective

    train(experiment, Session(directory=directory, wrap=watch))
    return found


@pytest.mark.parametrize("experiment", [POINTS, IMAGES], ids=["points", "images"])
def test_a_finished_run_is_released(experiment, tmp_path):
    """Pictures included; without waiting for the collector to run by itself."""
    gc.disable()
    try:
        found = held(experiment, tmp_path)
        assert len(found) == 3 and not any(reference() for reference in found)
    finally:
        gc.enable()


def test_a_failed_run_is_released(tmp_path):
    found = []

    def spoil(objective):
        found.append(weakref.ref(objective))
        for parameter in objective.net.parameters():
            parameter.data.fill_(float("nan"))
        return objective

    gc.disable()
    try:
        with pytest.raises(NonFiniteLoss):
            train(IMAGES, Session(directory=tmp_path, wrap=spoil))
        assert len(found) == 1 and found[0]() is None
    finally:
        gc.enable()
