"""Writes a comparison: its table, a plot of its two objectives, and the samples side by side."""

import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vamf.cluster.search.analysis import curves
from vamf.cluster.search.analysis.comparison import Comparison, Row
from vamf.cluster.search.analysis.plots import bar, wide
from vamf.files import write_whole

TABLE, PLOT, PICTURES = "table.md", "metrics.png", "samples.png"
CURVES = "curves.png"
LABEL = 48
"""Characters of a line of a label in the plot."""
COLUMNS = 4
"""Pictures side by side."""
MARGIN, FONT, NARROWEST = 8, 14, 200
"""Pixels: between pictures, of the labels' font, and the width that a label has at least."""


def write(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Writes the files into a folder; without any kept picture there is none of the samples."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"table": folder / TABLE, "plot": folder / PLOT}
    write_whole(files["table"], f"{comparison}\n")
    write_whole(files["plot"], partial(figure(comparison).savefig, dpi=120, format="png"))
    if (drawn := curves.figure(comparison)) is not None:
        files["curves"] = folder / CURVES
        write_whole(files["curves"], partial(drawn.savefig, dpi=120, format="png"))
    kept = [(row.label, path) for row in comparison.rows if (path := _picture(row)) is not None]
    if kept:
        files["samples"] = folder / PICTURES
        write_whole(files["samples"], partial(side_by_side(kept).save, format="png"))
    return files


def _picture(row: Row) -> Path | None:
    """The last picture of the row's first run that has kept one."""
    return next((run.picture for run in row.runs if run.picture is not None), None)


def figure(comparison: Comparison) -> Any:
    """A panel for loss variance and distance each: a point with its error for each row."""
    from matplotlib.figure import Figure  # slow to import

    names = [n for n in ("eval/loss_variance", comparison.distance) if n in comparison.names]
    texts = [textwrap.fill(row.label, LABEL) for row in comparison.rows]
    lines = 1 + max(text.count("\n") for text in texts)
    height = 1.2 + len(texts) * (0.15 + 0.18 * lines)
    drawn = Figure(figsize=(3 + 4 * len(names), height), layout="constrained")
    panels = drawn.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, comparison, name)
    panels[0].set_yticks(range(len(texts)), texts, fontsize=8)
    panels[0].set_ylim(len(texts) - 0.5, -0.5)  # the first row on top
    return drawn


def _panel(axes: Any, comparison: Comparison, name: str) -> None:
    measured = [row.metrics[name] for row in comparison.rows]
    for position, (value, error) in enumerate(measured):
        colour = "tab:red" if position == 0 else "tab:blue"
        axes.errorbar(value, position, xerr=bar(error), fmt="o", color=colour, capsize=3, lw=1)
    axes.axvline(measured[0].value, color="tab:red", lw=0.8, ls=":")
    if wide([value for value, _ in measured]):
        axes.set_xscale("log")
    axes.set(xlabel=name.removeprefix("eval/"))


def side_by_side(pictures: list[tuple[str, Path]]) -> Image.Image:
    """Pictures of samples, each below its label, a few in a row."""
    font = ImageFont.load_default(FONT)
    images = [Image.open(path).convert("RGB") for _, path in pictures]
    width = max(NARROWEST, *(image.width for image in images))
    labels = [_fitted(label, width, font) for label, _ in pictures]
    top = MARGIN + max(label.count("\n") + 1 for label in labels) * (FONT + 4)
    cell = width + MARGIN, top + max(image.height for image in images) + MARGIN
    columns = min(COLUMNS, len(images))
    size = columns * cell[0] + MARGIN, -(-len(images) // columns) * cell[1] + MARGIN
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, image) in enumerate(zip(labels, images, strict=True)):
        row, column = divmod(index, columns)
        corner = MARGIN + column * cell[0], MARGIN + row * cell[1]
        draw.multiline_text((corner[0] + 1, corner[1]), label, fill="black", font=font, spacing=4)
        sheet.paste(image, (corner[0], corner[1] + top))
    return sheet


def _fitted(label: str, width: int, font: Any) -> str:
    """A label in lines of at most ``width`` pixels, each of at least one character."""
    for characters in range(len(label), 1, -1):
        lines = textwrap.wrap(label, characters, break_on_hyphens=False)
        if all(font.getlength(line) <= width - 2 for line in lines):
            return "\n".join(lines)
    return "\n".join(textwrap.wrap(label, 1))
