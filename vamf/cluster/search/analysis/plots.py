"""Plots one objective of a search against the other, and each over what was varied."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vamf.cluster.search.analysis.results import Results
from vamf.cluster.search.analysis.slices import Slice, Slices
from vamf.files import write_whole


def plot(results: Results, path: Path) -> None:
    """Draws the trials, their front and its growth, and, for beta alone, the fitted curves."""
    from matplotlib.figure import Figure  # slow to import

    smooth, names = results.smooth, results.objectives
    panels = 2 if smooth is None else 2 + len(names)
    rows = math.ceil(panels / 2)
    figure = Figure(figsize=(12, 5 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for empty in axes[panels:]:
        empty.set_axis_off()
    _trade(axes[0], results)
    _growth(axes[1], results)
    if smooth is not None:
        shown = smooth.front
        curve, last = smooth.curves[0].mean[shown], smooth.curves[-1].mean[shown]
        axes[0].plot(curve, last, ".", ms=3, color="tab:blue", label="front of the fitted curves")
        for axis, name in zip(axes[2:], names, strict=False):
            _over_beta(axis, results, name)
    if axes[0].get_legend_handles_labels()[0]:  # empty if no trial succeeded
        axes[0].legend(fontsize=8, loc="upper right")
    ordered = sorted(results.complete, key=lambda trial: trial.number not in results.front)
    x, y = names[0], names[-1]
    places = [(trial.metrics[x].value, trial.metrics[y].value) for trial in ordered]
    label(axes[0], [trial.label for trial in ordered], places)
    _save(figure, path)


def plot_slices(results: Results, slices: Slices, path: Path) -> None:
    """Draws each objective along each parameter, with the others at their best, and the trials."""
    from matplotlib.figure import Figure

    names, cuts = results.objectives, slices.slices
    figure = Figure(figsize=(4 * len(cuts), 4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(cuts), squeeze=False)
    for row, name in enumerate(reversed(names)):
        values = [trial.metrics[name].value for trial in results.complete]
        for axis, cut in zip(axes[row], cuts, strict=True):
            _slice(axis, results, cut, name)
            axis.axvline(_place(cut, slices.best[cut.parameter]), color="tab:red", lw=1)
            if wide(values):
                _logarithmic(axis.set_yscale, axis.yaxis)
        axes[row][0].set_ylabel(name.removeprefix("eval/"))
    figure.suptitle(
        "Gaussian process along each parameter, the others at the best point (red); "
        "grey: trials, whose other parameters differ",
        fontsize=9,
    )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, partial(figure.savefig, dpi=120, format="png"))


def _logarithmic(set_scale: Callable[[str], Any], axis: Any) -> None:
    """Numbers stand at powers of ten alone, as those between would overlap."""
    from matplotlib.ticker import NullFormatter

    set_scale("log")
    axis.set_minor_formatter(NullFormatter())


def _growth(axes: Any, results: Results) -> None:
    volumes = results.hypervolumes
    axes.step(range(1, len(volumes) + 1), volumes, where="post", color="tab:red", lw=1)
    axes.set(xlabel="complete trials", ylabel="hypervolume of their front")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _place(cut: Slice, value: Any) -> float:
    """Where a value stands on a slice's axis: itself, or the index of a choice."""
    return float(cut.values.index(value) if cut.choices else value)


def _slice(axes: Any, results: Results, cut: Slice, name: str) -> None:
    curve = cut.curves[results.objectives.index(name)]
    places = [_place(cut, value) for value in cut.values]
    if cut.choices:
        bars = [curve.mean - curve.low, curve.high - curve.mean]
        axes.errorbar(places, curve.mean, yerr=bars, fmt="o", color="tab:blue", capsize=4)
        axes.set_xticks(places, [str(value) for value in cut.values])
        axes.set_xlim(-0.5, len(places) - 0.5)
    else:
        axes.plot(places, curve.mean, color="tab:blue")
        axes.fill_between(places, curve.low, curve.high, color="tab:blue", alpha=0.2)
    if cut.logarithmic:
        _logarithmic(axes.set_xscale, axes.xaxis)
    tried = [_place(cut, value) for value in cut.tried]
    figures = [trial.metrics[name].value for trial in results.complete]
    axes.plot(tried, figures, ".", color="tab:gray")
    axes.set_xlabel(cut.parameter)


def _trade(axes: Any, results: Results) -> None:
    x, y = results.objectives[0], results.objectives[-1]
    for trial in results.complete:
        colour = "tab:red" if trial.number in results.front else "tab:gray"
        (a, da), (b, db) = trial.metrics[x], trial.metrics[y]
        axes.errorbar(a, b, yerr=bar(db), xerr=bar(da), fmt="o", color=colour, capsize=2, lw=1)
    on_front = [trial for trial in results.complete if trial.number in results.front]
    front = sorted((t.metrics[x].value, t.metrics[y].value) for t in on_front)
    if front:
        line = zip(*front, strict=True)
        axes.step(*line, where="post", color="tab:red", lw=1, label="front of the trials")
    for name, set_scale, axis in (
        (x, axes.set_xscale, axes.xaxis),
        (y, axes.set_yscale, axes.yaxis),
    ):
        if wide([trial.metrics[name].value for trial in results.complete]):
            _logarithmic(set_scale, axis)
    axes.set(xlabel=x.removeprefix("eval/"), ylabel=y.removeprefix("eval/"))


def _over_beta(axes: Any, results: Results, name: str) -> None:
    assert results.smooth is not None
    smooth, index = results.smooth, results.objectives.index(name)
    curve = smooth.curves[index]
    axes.plot(smooth.betas, curve.mean, color="tab:blue", label="Gaussian process")
    axes.fill_between(smooth.betas, curve.low, curve.high, color="tab:blue", alpha=0.2)
    for trial in results.complete:
        value, error = trial.metrics[name]
        beta = trial.settings["beta.value"]
        axes.errorbar(beta, value, yerr=bar(error), fmt="o", color="tab:gray", capsize=2, lw=1)
    if index == len(results.objectives) - 1:
        axes.axvspan(*smooth.interval, color="tab:red", alpha=0.1)
        axes.axvline(smooth.best, color="tab:red", label=f"best beta {smooth.best:.2f}")
    if wide([trial.metrics[name].value for trial in results.complete]):
        _logarithmic(axes.set_yscale, axes.yaxis)
    axes.set(xlabel="beta", ylabel=name.removeprefix("eval/"))
    axes.legend(fontsize=8, loc="upper right")


OFFSETS = ((5, 5), (5, -11), (-5, 5), (-5, -11), (5, 15), (5, -21), (-5, 15), (-5, -21))
"""Where a label may stand: right or left of its point, above or below, in typographic points."""


def label(axes: Any, labels: list[str], places: list[tuple[float, float]]) -> list[Any]:
    """Labels points where neither labels, points nor the legend lie; those without room have none.

    The first ones take precedence. Call it last, as it fixes the limits of the axes.
    """
    if not places:
        return []
    axes.figure.draw_without_rendering()  # after which positions are known
    axes.autoscale(False)
    centres, legend = axes.transData.transform(places), axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    kept = []
    for text, place in zip(labels, places, strict=True):
        for dx, dy in OFFSETS:
            made = axes.annotate(
                text,
                place,
                xytext=(dx, dy),
                textcoords="offset points",
                fontsize=8,
                ha="left" if dx > 0 else "right",
            )
            box = made.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not box.count_contains(centres) and not box.count_overlaps(taken):
                taken.append(box)
                kept.append(made)
                break
            made.remove()
    return kept


def bar(error: float) -> float | None:
    """The error bar of a standard error; None if that is unknown, NaN."""
    return error if math.isfinite(error) else None


def wide(values: list[float]) -> bool:
    """Whether positive values span more than a factor of ten, and need a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)
