"""Generates samples of a trained network, and writes them to files."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vamf.files import write_whole
from vamf.inference.load import Trained
from vamf.metrics.quantize import to_uint8
from vamf.training.evaluation import generate_from
from vamf.training.pictures import as_image, pictured, save_picture
from vamf.typing import Pixels

AT_ONCE = 250
"""Number of images that are generated at once."""


def check_label(trained: Trained, label: int | None) -> None:
    """Raises ValueError for a label that the network does not know."""
    classes = trained.experiment.model.classes
    if label is None:
        return
    if not classes:
        raise ValueError(f"this network takes no labels; got {label}")
    if not 0 <= label < classes:
        raise ValueError(f"labels must lie in 0, ..., {classes - 1}; got {label}")


def generator_of(
    trained: Trained,
    *,
    steps: int | None,
    seed: int,
    label: int | None = None,
    scale: float | None = None,
    interval: tuple[float, float] | None = None,
) -> Callable[[range], torch.Tensor]:
    """A function from sample indices to samples on the CPU, each a function of (seed, index).

    ``steps``, the guidance ``scale`` and the ``interval`` of guided times default to the
    experiment's. Raises ValueError for fewer than one step, for a label that the network does not
    know, and for a guidance scale or interval that it was not trained with.
    """
    check_label(trained, label)
    chosen = {"seed": seed, "sampling_steps": steps, "guidance_scale": scale}
    if interval is not None:
        chosen |= {"guidance_t_min": interval[0], "guidance_t_max": interval[1]}
    changes = {f"evaluation.{name}": value for name, value in chosen.items() if value is not None}
    experiment = trained.experiment.override(changes)
    device = next(trained.ema.parameters()).device
    generate = generate_from(trained.ema, experiment, trained.shape, device, label)
    return lambda indices: generate(indices).cpu()


def save_samples(
    generate: Callable[[range], torch.Tensor], shape: tuple[int, ...], count: int | None, out: Path
) -> int:
    """Writes samples to a PNG picture, an npz file as ADM's (``arr_0``), or a folder of PNGs.

    The extension of ``out`` decides; without an extension it is a folder of numbered files.
    ``count`` defaults to the number in a picture. Returns the number of samples written. Raises
    ValueError for another extension, for points in an npz or a folder, and for a count below one.
    """
    number = len(pictured(shape)) if count is None else count
    if number < 1:
        raise ValueError(f"count must be at least 1; got {number}")
    if out.suffix == ".png":
        save_picture(torch.cat(list(in_parts(generate, number))), out)
        return number
    if len(shape) != 3:
        raise ValueError(f"points are drawn into a .png; got {out}")
    parts = (to_uint8(part) for part in in_parts(generate, number))
    if out.suffix == ".npz":
        _save_array(parts, out)
    elif not out.suffix:
        _save_folder(parts, out)
    else:
        raise ValueError(f"samples are written to a .png, a .npz or a folder; got {out}")
    return number


def in_parts(generate: Callable[[range], torch.Tensor], number: int) -> Iterator[torch.Tensor]:
    """The first ``number`` samples, in batches."""
    for start in range(0, number, AT_ONCE):
        yield generate(range(start, min(start + AT_ONCE, number)))


def _save_array(parts: Iterator[Pixels], out: Path) -> None:
    """Writes (n, height, width, channels) uint8, as ADM's and torch-fidelity's evaluators read."""
    out.parent.mkdir(parents=True, exist_ok=True)
    images = np.concatenate([part.permute(0, 2, 3, 1).numpy() for part in parts])
    write_whole(out, lambda file: np.savez(file, arr_0=images))


def _save_folder(parts: Iterator[Pixels], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"a folder for samples must be empty; got files in {out}")
    index = 0
    for part in parts:
        for pixels in part.permute(0, 2, 3, 1):
            picture: Image.Image = as_image(pixels)
            write_whole(out / f"{index:06d}.png", partial(picture.save, format="png"))
            index += 1
