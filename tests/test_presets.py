"""Every preset is a value that survives JSON and trains."""

import json
import math

import pytest
from pictures import trust_cifar10, write_tiny

from vamf.data.downloads import CIFAR10, MNIST
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


TINY_NETWORK = {"model.channels": 8, "model.blocks": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with random pixels in the place of MNIST and CIFAR-10."""
    root = tmp_path_factory.mktemp("data")
    write_tiny(root)
    with pytest.MonkeyPatch.context() as patch:
        trust_cifar10(patch)
        yield root


def tiny(preset, images):
    settings = TINY_DISTANCE[type(preset.evaluation.distance).__name__]
    changes = TINY | {f"evaluation.distance.{n}": v for n, v in settings.items()}
    if isinstance(preset.data, MNIST | CIFAR10):
        changes |= TINY_NETWORK | {"data.root": str(images)}
        changes |= {"evaluation.distance.extractor": "randconv64_v1"}
    if preset.ddpm is not None:
        changes |= {"evaluation.sampling_steps": 2}
    return preset.override(changes)


@PRESET
def test_round_trip_through_json(preset):
    text = json.dumps(preset.to_dict(), allow_nan=False)
    assert Experiment.from_dict(json.loads(text)) == preset


@PRESET
def test_two_steps_of_training(preset, tmp_path, images):
    experiment, logged, reported = tiny(preset, images), [], []
    session = Session(
        directory=tmp_path,
        log=lambda figures, step: logged.append((step, dict(figures))),
        report=reported.append,
    )
    summary = train(experiment, session)
    ((step, figures),) = logged
    key = f"eval/{experiment.evaluation.distance.key}"
    variances = {"eval/loss_variance", "eval/gradient_variance"}
    expected = {key} if experiment.ddpm else {key, *variances}
    assert summary.step == step == 2 and expected <= set(summary.metrics) <= set(figures)
    assert all(math.isfinite(measured.value) for measured in summary.metrics.values())
    assert all(math.isfinite(value) for n, value in figures.items() if not n.endswith("_se"))
    assert [r["step"] for r in reported] == [2]
    assert find_checkpoint(tmp_path).experiment() == experiment
    assert Summary.load(tmp_path / "summary.json").metrics.keys() == summary.metrics.keys()
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step_00000002.png"]
