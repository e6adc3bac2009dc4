"""Networks off their checkpoints: computed as in training, and measured beside what is known."""

import copy

import pytest
import torch
from tiny import TINY

from vamf.distributed import Workers
from vamf.metrics import distances
from vamf.metrics.extractors import ClassifierExtractor
from vamf.presets import PRESETS
from vamf.training.export import export
from vamf.training.inference import anchors, load
from vamf.training.loop import Session, train
from vamf.training.precision import allow
from vamf.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def precision():
    """Restored at the end: the settings are the process's."""
    yield
    allow(TINY.compute)


@pytest.mark.parametrize("trained_in", ["float32", "tf32"])
def test_samples_are_computed_in_the_precision_of_training(trained_in, tmp_path, precision):
    experiment = TINY.override({"compute.precision": trained_in, "steps": 2})
    train(experiment, Session(directory=tmp_path))
    export(tmp_path, tmp_path / "model.safetensors")
    other = {"float32": "tf32", "tf32": "float32"}[trained_in]
    for path in (tmp_path, tmp_path / "model.safetensors"):
        allow(TINY.override({"compute.precision": other}).compute)
        load(path, CPU)
        assert torch.backends.cudnn.allow_tf32 == (trained_in == "tf32")
        wanted = "highest" if trained_in == "float32" else "high"
        assert torch.get_float32_matmul_precision() == wanted


def test_a_compiled_run_is_used_as_any_other(tmp_path):
    """Its weights have channels last; an export is read by others."""
    compiled = PRESETS["digits"].override({"compute.compile": True, "steps": 2, "batch": 4})
    train(compiled, Session(directory=tmp_path))
    exported = tmp_path / "model.safetensors"
    export(tmp_path, exported)
    one, other = (load(path, CPU) for path in (tmp_path, exported))
    for a, b in zip(one.ema.parameters(), other.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(p.ndim == 4 and p.std() > 0 for p in other.ema.parameters())


@pytest.mark.parametrize("compiled", [(True, False), (False, True)])
def test_moments_of_the_optimiser_take_the_layout_of_their_weights(compiled):
    """A state of weights that lie otherwise in memory goes on as it would have."""
    digits = PRESETS["digits"].override({"steps": 8, "batch": 4})
    data = digits.data.load("train")
    first, second = (Trainer(digits.override({"compute.compile": c}), data) for c in compiled)
    for _ in range(2):
        first.train_step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for own in (first, second):
        own.train_step()
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    moments = [second.optimiser.state[p]["exp_avg"] for p in second.net.parameters()]
    for p, moment in zip(second.net.parameters(), moments, strict=True):
        assert moment.stride() == p.stride()


class Counting(ClassifierExtractor):
    """Counts the images that it sees."""

    seen = 0

    def __call__(self, images):
        type(self).seen += len(images)
        return super().__call__(images)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own; the extractor counts."""
    monkeypatch.setenv("VAMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Counting, "seen", 0)
    counting = Counting()
    monkeypatch.setattr(distances, "_extractor", lambda *_: counting)
    distances._reference.cache_clear()
    yield tmp_path / "cache" / "reference"
    distances._reference.cache_clear()


def test_anchors_are_measured_once(cache):
    first = anchors(TINY, Workers())
    assert set(first) == {"real test images", "uniform noise"}
    assert first["uniform noise"].value > first["real test images"].value > 0
    assert Counting.seen == 1347 + 2 * 40
    assert anchors(TINY, Workers()) == first and Counting.seen == 1347 + 2 * 40
    # What they do not depend on changes nothing, neither figures nor work.
    same = {"beta.value": 0.1, "evaluation.distance.also": ("precision_recall",), "seed": 3}
    assert anchors(TINY.override(same), Workers()) == first and Counting.seen == 1347 + 2 * 40


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation.seed": 1},
        {"evaluation.distance.samples": 41},
        {"evaluation.distance.reference": "test"},
    ],
    ids=str,
)
def test_other_anchors_are_other_figures(changes, cache):
    first, seen = anchors(TINY, Workers()), Counting.seen
    assert anchors(TINY.override(changes), Workers()) != first
    assert Counting.seen >= seen + 80


def test_other_weights_are_other_anchors(cache):
    anchors(TINY, Workers())
    distances._extractor().sha256, seen = "other weights", Counting.seen
    anchors(TINY, Workers())
    assert Counting.seen >= seen + 80


def test_damaged_anchors_are_measured_again(cache):
    first, seen = anchors(TINY, Workers()), Counting.seen
    (path,) = cache.glob("*.json")
    path.write_text(path.read_text()[:-9])
    assert anchors(TINY, Workers()) == first and Counting.seen == seen + 80
    assert anchors(TINY, Workers()) == first and Counting.seen == seen + 80
