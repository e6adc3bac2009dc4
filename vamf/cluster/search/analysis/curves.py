"""The distance of compared runs over seconds of training, and over samples."""

from statistics import mean
from typing import Any, NamedTuple

from vamf.cluster.search.analysis.comparison import Comparison, Row
from vamf.cluster.search.analysis.plots import wide
from vamf.cluster.search.trials import over_seeds
from vamf.metrics.distances import Measurement


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


def figure(comparison: Comparison) -> Any:
    """A line for each row, with a band of one standard error; None with fewer than two points."""
    from matplotlib.figure import Figure  # slow to import

    curves = [points(row, comparison.distance) for row in comparison.rows]
    if min(map(len, curves)) < 2:
        return None
    drawn = Figure(figsize=(13, 5), layout="constrained")
    panels = drawn.subplots(1, 2, sharey=True)
    for row, curve in zip(comparison.rows, curves, strict=True):
        values = [point.measured.value for point in curve]
        errors = [point.measured.error for point in curve]
        band = [[v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1)]
        for axes, places in zip(
            panels, ([p.seconds for p in curve], [p.samples for p in curve]), strict=True
        ):
            (line,) = axes.plot(places, values, ".-", lw=1, label=row.label)
            axes.fill_between(places, *band, color=line.get_color(), alpha=0.2, lw=0)
    if wide([point.measured.value for curve in curves for point in curve]):
        panels[0].set_yscale("log")
    panels[0].set(
        xlabel="seconds of training steps", ylabel=comparison.distance.removeprefix("eval/")
    )
    panels[1].set(xlabel="samples in these steps")
    drawn.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
    )
    return drawn
