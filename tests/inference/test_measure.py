"""Figures beside which measurements are read: measured once, and anew where they would differ."""

import pytest
from helpers.tiny import TINY

from vamf.distributed import Workers
from vamf.inference.measure import anchors
from vamf.metrics import distances
from vamf.metrics.extractors import ClassifierExtractor


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
