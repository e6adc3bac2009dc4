"""Pictures of generated samples: image grids, and scatter plots of points."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate
from torchvision.utils import save_image

from vamf.typing import Sample

GRID = 64
"""Images in a grid."""
POINTS = 2048
"""Points in a scatter plot."""


def pictured(shape: tuple[int, ...]) -> range:
    """Indices of the samples that a picture shows."""
    return range(GRID if len(shape) == 3 else POINTS)


def save_picture(samples: Sample, path: Path) -> None:
    """Writes images in [-1, 1] as a PNG grid, enlarged if small, or 2-D points as a scatter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples.ndim == 4:
        scale = max(1, 32 // samples.shape[-1])
        large = interpolate(samples.float(), scale_factor=scale, mode="nearest")
        columns = int(len(samples) ** 0.5)
        save_image(large, path, nrow=columns, normalize=True, value_range=(-1, 1), padding=1)
    else:
        _scatter(samples, path)


def _scatter(points: Sample, path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and only needed for points

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    x, y = torch.as_tensor(points).cpu().double().unbind(1)
    axes.scatter(x.numpy(), y.numpy(), s=2, alpha=0.5)
    figure.savefig(path, dpi=120)
