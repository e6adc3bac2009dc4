"""The distance of compared runs over seconds of training, and over samples."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from vamf.cluster.search.analysis.comparison import Comparison, Row
from vamf.cluster.search.analysis.plots import wide
from vamf.cluster.search.trials import over_seeds
from vamf.metrics.distances import Measurement

MOST = 10
"""Lines in a plot: as many as there are colours."""


class Point(NamedTuple):
    """An evaluation of a configuration, over its seeds."""

    seconds: float
    """Mean seconds of the training steps before it, without evaluations."""
    samples: int
    """Samples of these steps."""
    measured: Measurement
    """Mean over seeds with its standard error; of one seed, the evaluation's own error."""


def points(row: Row, name: str) -> list[Point]:
    """The evaluations of a metric that all seeds have kept, by step."""
    kept = [{e.step: e for e in run.evaluations if name in e.metrics} for run in row.runs]
    found = []
    for step in sorted(set.intersection(*map(set, kept))):
        at = [one[step] for one in kept]
        measured = over_seeds([{name: e.metrics[name]} for e in at])[name]
        batch = row.runs[0].experiment.batch
        found.append(Point(mean(e.seconds for e in at), step * batch, measured))
    return found


def shown(comparison: Comparison) -> list[Row]:
    """The rows that are drawn: all, or the first and those with the smallest distances."""
    rows = comparison.rows
    far = [row.metrics[comparison.distance].value for row in rows]
    nearest = sorted(range(1, len(rows)), key=lambda k: (math.isnan(far[k]), far[k]))
    return [rows[k] for k in (0, *sorted(nearest[: MOST - 1]))]


def figure(comparison: Comparison) -> Any:
    """A line for each row, with a band of one standard error; None with fewer than two points."""
    from matplotlib.figure import Figure  # slow to import

    rows = shown(comparison)
    curves = [points(row, comparison.distance) for row in rows]
    if min(map(len, curves)) < 2:
        return None
    drawn = Figure(figsize=(13, 6), layout="constrained")
    over_seconds, over_samples = drawn.subplots(1, 2, sharey=True)
    for row, curve in zip(rows, curves, strict=True):
        _line(over_seconds, [point.seconds for point in curve], curve, row.label)
        _line(over_samples, [point.samples for point in curve], curve, row.label)
    if wide([point.measured.value for curve in curves for point in curve]):
        over_seconds.set_yscale("log")
    name = comparison.distance.removeprefix("eval/")
    over_seconds.set(xlabel="seconds of training steps", ylabel=name)
    over_samples.set(xlabel="samples in these steps")
    lines = over_seconds.get_legend_handles_labels()
    drawn.legend(*lines, loc="outside lower center", ncols=2, fontsize=8)
    return drawn


def _line(axes: Any, places: Sequence[float], curve: Sequence[Point], label: str) -> None:
    values = [point.measured.value for point in curve]
    low, high = (
        [v + sign * p.measured.error for v, p in zip(values, curve, strict=True)]
        for sign in (-1, 1)
    )
    (line,) = axes.plot(places, values, ".-", lw=1, label=label)
    axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, lw=0)
