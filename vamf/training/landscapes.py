"""A beta landscape as a file, as a picture and as text."""

import json
from functools import partial
from pathlib import Path

import torch

from vamf.diagnostics.landscape import CurveName, Estimate, Landscape
from vamf.diagnostics.ratios import CURVATURE_TIMES, Figures, gaps
from vamf.diagnostics.variance import TIMES
from vamf.files import write_whole
from vamf.metrics.distances import Measurement

GRID = 101
"""Values of beta that are drawn and saved."""


def report(landscape: Landscape, out: Path, ratios: Figures | None = None) -> str:
    """Writes ``out``.png and ``out``.json, and says in words what was found, and where it is."""
    picture, data = (out.with_name(f"{out.name}.{suffix}") for suffix in ("png", "json"))
    plot_landscape(landscape, picture)
    save_landscape(landscape, data, ratios)
    told = [describe_landscape(landscape)]
    if ratios is not None:
        told.append(describe_ratios(ratios))
    return "\n".join([*told, f"landscape  {picture}, {data}"])


def save_landscape(landscape: Landscape, path: Path, ratios: Figures | None = None) -> None:
    """Writes every curve with its standard error, in all and by bin, and the estimates, as JSON."""
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
    """Draws M(beta) with its parts and its minimiser, each bin's, and the loss variance."""
    from matplotlib.figure import Figure  # slow to import

    conditional = "conditional/mse" in landscape.names
    figure = Figure(figsize=(5 * (3 + conditional), 4), layout="constrained")
    axes = figure.subplots(1, 3 + conditional)
    _draw(axes[0], landscape, "gradient", "batch gradient, unconditional")
    _draw_bins(axes[1], landscape)
    _draw_curve(axes[2], landscape, "loss/variance", "tab:green")
    axes[2].set(title="variance of a sample's loss", yscale="log")
    if conditional:
        _draw(axes[3], landscape, "conditional", "a sample's gradient given z, r, t")
    for axis in axes:
        axis.set_xlabel("beta")
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
    axes.axvline(value, color="tab:red", label=f"beta* = {value:.2f} [{low:.2f}, {high:.2f}]")
    axes.set(title=title)
    axes.legend(fontsize=8)


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
            label = f"t in [{low:.2g}, {high:.2g}): {best:.2f}"
            (line,) = axes.plot(betas, (value / value[0]).cpu(), label=label)
            axes.axvline(best, color=line.get_color(), ls=":", lw=1)
    axes.set(title="M(beta) / M(0) by t, and beta*(t)")
    axes.legend(fontsize=8)


def describe_landscape(landscape: Landscape) -> str:
    """beta* by every formula, with 95 % intervals where there are some, and of every bin."""
    lines = []
    for name, estimate in landscape.estimates().items():
        curve = name.removeprefix("beta_star/")
        told = _told(estimate)
        if curve in landscape.names:
            low, high = landscape.interval(curve)
            told += f"   95 % [{low:.3f}, {high:.3f}]"
        lines.append(f"{name:32} {told}")
    for bin in _bins(landscape):
        low, high = landscape.edges[bin : bin + 2]
        best = _told(landscape.minimiser("gradient/mse", bin))
        lines.append(f"{f'beta_star/gradient/mse, t in [{low:.2g}, {high:.2g})':40} {best}")
    return "\n".join(lines)


def describe_ratios(figures: Figures) -> str:
    """Variance ratio and Jacobian by t, then the curvature at the smallest and largest gaps."""
    names = ("variance_ratio", "jacobian_norm", "jacobian_std", "kappa")
    lines = [f"{'t':4}" + "".join(f"{name:>20}" for name in names)]
    for t in TIMES:
        told = [str(Measurement(*figures[f"{name}/t{t:.1f}"])) for name in names]
        lines.append(f"{t:<4}" + "".join(f"{text:>20}" for text in told))
    for t in CURVATURE_TIMES:
        (low, *_, high), head = gaps(t), f"curvature/t{t:.1f}_gap"
        ends = [
            f"{Measurement(*figures[f'{head}{gap:.3f}'])} at gap {gap:.2f}" for gap in (low, high)
        ]
        lines.append(f"{f'curvature, t = {t}':20} {', '.join(ends)}")
    return "\n".join(lines)


def _told(estimate: Estimate) -> str:
    return str(Measurement(*estimate))
