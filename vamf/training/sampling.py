"""Samples of a trained network as pixels, and as files of any number of them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vamf.files import write_whole
from vamf.metrics.quantize import to_uint8
from vamf.training.evaluation import generate_from
from vamf.training.inference import Trained
from vamf.training.pictures import as_image, pictured, save_picture
from vamf.typing import Pixels

AT_ONCE = 250
"""Images that are generated at once."""


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
) -> Callable[[range], torch.Tensor]:
    """A function from sample indices to samples on the CPU, each a function of (seed, index).

    ``steps`` and the guidance ``scale`` of None are the experiment's. Raises ValueError for fewer
    than one step, for a label that the network does not know, and for a scale that it was not
    trained with.
    """
    check_label(trained, label)
    chosen = {"seed": seed, "sampling_steps": steps, "guidance_scale": scale}
    changes = {f"evaluation.{name}": value for name, value in chosen.items() if value is not None}
    experiment = trained.experiment.override(changes)
    device = next(trained.ema.parameters()).device
    generate = generate_from(trained.ema, experiment, trained.shape, device, label)
    return lambda indices: generate(indices).cpu()


def save_samples(
    generate: Callable[[range], torch.Tensor], shape: tuple[int, ...], count: int | None, out: Path
) -> int:
    """Writes samples: a PNG picture, an npz as ADM's (``arr_0``), or a folder of PNG files.

    Which of them follows from the ending of ``out``; without one it is a folder, of files that are
    numbered. ``count`` is by default what a picture shows. Returns how many were written. Raises
    ValueError for points that are to be images, for another ending, and for fewer than one.
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
    """The first ``number`` samples, a few at a time."""
    for start in range(0, number, AT_ONCE):
        yield generate(range(start, min(start + AT_ONCE, number)))


def _save_array(parts: Iterator[Pixels], out: Path) -> None:
    """(n, height, width, channels) uint8, which ADM's and torch-fidelity's evaluators read."""
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
