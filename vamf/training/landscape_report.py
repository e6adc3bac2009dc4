"""A beta landscape as a file, as a picture and as text."""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from vamf.diagnostics.landscape import CurveName, Estimate, Landscape
from vamf.diagnostics.ratios import CURVATURE_TIMES, gaps
from vamf.diagnostics.variance import TIMES
from vamf.files import write_whole
from vamf.metrics.distances import Measurement
from vamf.run_layout import LANDSCAPE, LAST_LANDSCAPE, step_name
from vamf.typing import Estimates

FONT = 17
"""The size of the pictures' letters in points."""

GRID = 101
"""Number of values of beta that are plotted and saved."""


def report(landscape: Landscape, out: Path, ratios: Estimates | None = None) -> str:
    """Writes ``out``.png and ``out``.json; returns a text with the results and the paths."""
    picture, data = (out.with_name(f"{out.name}.{suffix}") for suffix in ("png", "json"))
    plot_landscape(landscape, picture)
    save_landscape(landscape, data, ratios)
    parts = [describe_landscape(landscape)]
    if ratios is not None:
        parts.append(describe_ratios(ratios))
    return "\n".join([*parts, f"landscape  {picture}, {data}"])


def keep_landscape(landscape: Landscape, run: Path, step: int) -> Path:
    """Saves a landscape, as the last one, in the folder of its run; returns its picture's path."""
    path = run / LANDSCAPE / f"{step_name(step)}.png"
    save_landscape(landscape, path.with_suffix(".json"))
    plot_landscape(landscape, path)
    write_whole(
        run / LAST_LANDSCAPE, json.dumps({"step": step, "estimates": landscape.estimates()})
    )
    return path


def last_estimates(run: Path, step: int) -> Estimates:
    """The estimates of a run's last landscape; none if it was made after ``step``, or is damaged.

    Also none of a run without landscapes, or of an older version.
    """
    with suppress(OSError, ValueError, TypeError, KeyError):
        last = json.loads((run / LAST_LANDSCAPE).read_text())
        if last["step"] <= step:
            return {name: (value, error) for name, (value, error) in last["estimates"].items()}
    return {}


def save_landscape(landscape: Landscape, path: Path, ratios: Estimates | None = None) -> None:
    """Writes all curves with standard errors, in total and per bin, and the estimates, as JSON."""
    betas, bins = torch.linspace(0, 1, GRID), _bins(landscape)

    def curves(bin: int | None) -> dict[str, dict[str, list[float]]]:
        found = {name: landscape.curve(name, betas, bin) for name in landscape.names}
        return {n: {"value": v.tolist(), "error": e.tolist()} for n, (v, e) in found.items()}

    data = {
        "beta": betas.tolist(),
        "edges": landscape.edges,
        "batch": landscape.batch,
        "total": curves(None),
        "bins": [curves(bin) for bin in bins],
        "estimates": {n: list(e) for n, e in landscape.estimates().items()},
        "beta_star_of_bins": [list(landscape.minimiser("gradient/mse", bin)) for bin in bins],
        "ratios": ratios or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(data) + "\n")


def _bins(landscape: Landscape) -> range:
    return range(landscape.bins)


def plot_landscape(landscape: Landscape, path: Path) -> None:
    """Plots M(beta) with its parts and minimiser, the curve of each bin, and the loss variance."""
    from matplotlib.figure import Figure  # slow to import

    conditional = "conditional/mse" in landscape.names
    figure = Figure(figsize=(7, 7), layout="constrained")  # readable in MLflow's 256 pixels
    axes = figure.subplots(2, 2).flatten()
    _draw(axes[0], landscape, "gradient", "M(beta), batch gradient")
    _draw_bins(axes[1], landscape)
    _draw_curve(axes[2], landscape, "loss/variance", "tab:green")
    axes[2].set(yscale="log")
    axes[2].set_title("variance of the loss", fontsize=FONT)
    if conditional:
        _draw(axes[3], landscape, "conditional", "gradient given z, r, t")
    else:
        axes[3].set_axis_off()
    for axis in axes:
        axis.set_xlabel("beta", fontsize=FONT)
        axis.tick_params(labelsize=FONT)
        axis.yaxis.get_offset_text().set_fontsize(FONT)
        axis.locator_params(axis="x", nbins=3)
        if axis.get_yscale() == "linear":
            axis.locator_params(axis="y", nbins=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, partial(figure.savefig, dpi=110, format="png"))


def _draw(axes, landscape: Landscape, group: str, title: str) -> None:  # type: ignore[no-untyped-def]
    colours = {"trace": "tab:blue", "bias2": "tab:orange", "mse": "black"}
    for what, colour in colours.items():
        name: CurveName = f"{group}/{what}"  # type: ignore[assignment]
        _draw_curve(axes, landscape, name, colour, label=what)
    name = f"{group}/mse"  # type: ignore[assignment]
    value, _ = landscape.minimiser(name)
    low, high = landscape.interval(name)
    axes.axvspan(low, high, color="tab:red", alpha=0.15)
    axes.axvline(value, color="tab:red")
    axes.set_title(f"{title}\nbeta* {value:.2f} [{low:.2f}, {high:.2f}]", fontsize=FONT)
    axes.legend(fontsize=FONT - 3)


def _draw_curve(  # type: ignore[no-untyped-def]
    axes, landscape: Landscape, name: CurveName, colour: str, label: str | None = None
) -> None:
    betas = torch.linspace(0, 1, GRID)
    value, error = landscape.curve(name, betas)
    axes.plot(betas, value.cpu(), color=colour, label=label)
    low, high = (value - 2 * error).cpu(), (value + 2 * error).cpu()
    axes.fill_between(betas, low, high, color=colour, alpha=0.15)


def _draw_bins(axes, landscape: Landscape) -> None:  # type: ignore[no-untyped-def]
    betas = torch.linspace(0, 1, GRID)
    for bin in _bins(landscape):
        value, _ = landscape.curve("gradient/mse", betas, bin)
        if value[0] > 0:
            low, high = landscape.edges[bin : bin + 2]
            best = landscape.minimiser("gradient/mse", bin).value
            label = f"{low:.2g} to {high:.2g}: {best:.2f}"
            (line,) = axes.plot(betas, (value / value[0]).cpu(), label=label)
            axes.axvline(best, color=line.get_color(), ls=":", lw=1)
    axes.set_title("M(beta) / M(0)\nby t: beta*(t)", fontsize=FONT)
    axes.legend(fontsize=FONT - 3)


def describe_landscape(landscape: Landscape) -> str:
    """beta* by every formula, with 95 % intervals if available, and beta* of every bin."""
    lines = []
    for name, estimate in landscape.estimates().items():
        curve = name.removeprefix("beta_star/")
        line = _formatted(estimate)
        if curve in landscape.names:
            low, high = landscape.interval(curve)
            line += f"   95 % [{low:.3f}, {high:.3f}]"
        lines.append(f"{name:32} {line}")
    for bin in _bins(landscape):
        low, high = landscape.edges[bin : bin + 2]
        best = _formatted(landscape.minimiser("gradient/mse", bin))
        lines.append(f"{f'beta_star/gradient/mse, t in [{low:.2g}, {high:.2g})':40} {best}")
    return "\n".join(lines)


def describe_ratios(ratios: Estimates) -> str:
    """Variance ratio and Jacobian by t, then the curvature at the smallest and largest gaps."""
    names = ("variance_ratio", "jacobian_norm", "jacobian_std", "kappa")
    lines = [f"{'t':4}" + "".join(f"{name:>20}" for name in names)]
    for t in TIMES:
        cells = [str(Measurement(*ratios[f"{name}/t{t:.1f}"])) for name in names]
        lines.append(f"{t:<4}" + "".join(f"{text:>20}" for text in cells))
    for t in CURVATURE_TIMES:
        (low, *_, high), head = gaps(t), f"curvature/t{t:.1f}_gap"
        ends = [
            f"{Measurement(*ratios[f'{head}{gap:.3f}'])} at gap {gap:.2f}" for gap in (low, high)
        ]
        lines.append(f"{f'curvature, t = {t}':20} {', '.join(ends)}")
    return "\n".join(lines)


def _formatted(estimate: Estimate) -> str:
    return str(Measurement(*estimate))
