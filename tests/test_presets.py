"""Every preset is a value that survives JSON and trains."""

import json
import math

import pytest

from vamf.experiment import Experiment
from vamf.presets import PRESETS
from vamf.training.checkpoint import find_checkpoint
from vamf.training.loop import Session, Summary, train

PRESET = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)

TINY = {
    "steps": 2,
    "batch": 4,
    "evaluation.variance_samples": 4,
    "evaluation.gradient_batches": 2,
}
TINY_DISTANCE = {
    "FrechetDistance": {"samples": 40},
    "SlicedWasserstein": {"samples": 16, "directions": 4, "repetitions": 2},
}


def tiny(preset):
    settings = TINY_DISTANCE[type(preset.evaluation.distance).__name__]
    return preset.override(TINY | {f"evaluation.distance.{n}": v for n, v in settings.items()})


@PRESET
def test_round_trip_through_json(preset):
    text = json.dumps(preset.to_dict(), allow_nan=False)
    assert Experiment.from_dict(json.loads(text)) == preset


@PRESET
def test_two_steps_of_training(preset, tmp_path):
    experiment, logged, reported = tiny(preset), [], []
    session = Session(
        directory=tmp_path,
        log=lambda figures, step: logged.append((step, dict(figures))),
        report=reported.append,
    )
    summary = train(experiment, session)
    ((step, figures),) = logged
    key = f"eval/{experiment.evaluation.distance.key}"
    expected = {key, "eval/loss_variance", "eval/gradient_variance"}
    assert summary.step == step == 2 and expected <= set(summary.metrics) <= set(figures)
    assert all(math.isfinite(measured.value) for measured in summary.metrics.values())
    assert all(math.isfinite(value) for n, value in figures.items() if not n.endswith("_se"))
    assert [r["step"] for r in reported] == [2]
    assert find_checkpoint(tmp_path).experiment() == experiment
    assert Summary.load(tmp_path / "summary.json").metrics.keys() == summary.metrics.keys()
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step_00000002.png"]
