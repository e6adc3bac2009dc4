"""Pictures of generated samples: image grids, and scatter plots of points."""

from functools import partial
from pathlib import Path
from typing import BinaryIO

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
    """Indices of the samples in a picture."""
    return range(GRID if len(shape) == 3 else POINTS)


def save_picture(samples: Sample, path: Path) -> None:
    """Writes images in [-1, 1] as a PNG grid, enlarged if small, or points as a scatter plot.

    Of points with more than two dimensions, the first two are plotted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, partial(picture, samples))


def picture(samples: Sample, file: BinaryIO) -> None:
    """Writes ``save_picture``'s PNG to an open file."""
    if samples.ndim == 4:
        _grid(samples, file)
    else:
        _scatter(samples, file)


def _grid(images: Sample, file: BinaryIO) -> None:
    # torchvision's make_grid does the same, but its import takes 4 CPU-seconds in every process.
    columns, size = int(len(images) ** 0.5), images.shape[-1]
    blank = -len(images) % columns
    padded = pad(to_uint8(images.cpu()), (0, 1, 0, 1, 0, 0, 0, blank))
    rows = padded.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    pixels = rows.flatten(2, 3).flatten(0, 1)
    picture = as_image(pixels)
    scale = max(1, 32 // size)
    larger = picture.width * scale, picture.height * scale
    enlarged = picture.resize(larger, Image.Resampling.NEAREST)
    enlarged.save(file, format="png")


def as_image(pixels: Tensor) -> Image.Image:
    """Pixels (height, width, 1 or 3) uint8 as a Pillow image; ValueError for other channels."""
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; got {pixels.shape[-1]}")
    array = pixels.contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)


def _scatter(points: Sample, file: BinaryIO) -> None:
    from matplotlib.figure import Figure  # slow to import, and only needed for points

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    x, y = torch.as_tensor(points).cpu().double()[:, :2].unbind(1)
    axes.scatter(x.numpy(), y.numpy(), s=2, alpha=0.5)
    figure.savefig(file, dpi=120, format="png")
