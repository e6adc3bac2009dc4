"""Pictures of generated samples: image grids, and scatter plots of points."""

from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from vamf.files import write_whole
from vamf.metrics.quantize import to_uint8
from vamf.typing import Sample

GRID = 64
"""Images in a grid."""
POINTS = 2048
"""Points in a scatter plot."""


def pictured(shape: tuple[int, ...]) -> range:
    """Indices of the samples that a picture shows."""
    return range(GRID if len(shape) == 3 else POINTS)


def save_picture(samples: Sample, path: Path) -> None:
    """Writes images in [-1, 1] as a PNG grid, enlarged if small, or points as a scatter.

    Of points in more dimensions the first two are shown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples.ndim == 4:
        _grid(samples, path)
    else:
        _scatter(samples, path)


def _grid(images: Sample, path: Path) -> None:
    # torchvision's make_grid does the same, but takes four CPU-seconds to import in every process.
    columns, size = int(len(images) ** 0.5), images.shape[-1]
    blank = -len(images) % columns
    padded = pad(to_uint8(images.cpu()), (0, 1, 0, 1, 0, 0, 0, blank))
    rows = padded.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    pixels = rows.flatten(2, 3).flatten(0, 1)
    picture = as_image(pixels)
    scale = max(1, 32 // size)
    larger = picture.width * scale, picture.height * scale
    enlarged = picture.resize(larger, Image.Resampling.NEAREST)
    write_whole(path, partial(enlarged.save, format="png"))


def as_image(pixels: Tensor) -> Image.Image:
    """Pixels (height, width, 1 or 3) uint8 as a Pillow image; ValueError for other channels."""
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; got {pixels.shape[-1]}")
    array = pixels.contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)


def _scatter(points: Sample, path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and only needed for points

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    x, y = torch.as_tensor(points).cpu().double()[:, :2].unbind(1)
    axes.scatter(x.numpy(), y.numpy(), s=2, alpha=0.5)
    write_whole(path, partial(figure.savefig, dpi=120, format="png"))
