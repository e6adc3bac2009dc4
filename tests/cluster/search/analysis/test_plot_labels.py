"""Labels of a plot's points."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from vamf.cluster.search.analysis.plots import label


@pytest.mark.parametrize("log", [False, True])
def test_labels_lie_on_neither_labels_nor_points_nor_the_legend(log: bool) -> None:
    places = [(float(x), float(y)) for x, y in np.random.default_rng(0).uniform(1, 9, (60, 2))]
    axes = Figure(layout="constrained").subplots()
    axes.plot(*zip(*places, strict=True), "o", label="points")
    axes.legend()
    if log:
        axes.set_xscale("log")
    names = [f"β={k / 60:.3f} lr=0.00123" for k in range(60)]
    kept = label(axes, names, places)
    axes.figure.draw_without_rendering()
    assert kept[0].get_text() == names[0]  # the first takes precedence
    assert 10 < len(kept) < 60
    boxes = [text.get_window_extent() for text in kept]
    boxes.append(axes.get_legend().get_window_extent())
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.count_contains(axes.transData.transform(places)) for box in boxes[:-1])


def test_points_with_room_are_all_labelled() -> None:
    places = [(float(k), float(k % 3)) for k in range(9)]
    axes = Figure(figsize=(12, 5), layout="constrained").subplots()
    axes.plot(*zip(*places, strict=True), "o")
    kept = label(axes, [f"β=0.{k}" for k in range(9)], places)
    assert [text.get_text() for text in kept] == [f"β=0.{k}" for k in range(9)]
    assert label(axes, [], []) == []
