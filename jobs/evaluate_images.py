"""Measure a folder of images: ``python -m jobs.evaluate --images FOLDER --preset cifar10``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vamf import presets
from vamf.data.image_folder import ImageFolder
from vamf.distributed import Workers
from vamf.metrics.distances import FrechetDistance

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure all images below a folder by a preset's distance to the preset's data."""

    images: Path
    """The folder; its images must be of the data's size."""
    preset: str = "cifar10"
    """Whose data, and whose distance."""
    set: tuple[str, ...] = ()
    """Other settings of the preset, as `name=value`, such as `data.root=data`."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What to do with files that are not images, or of another size."""
    save: Path | None = None
    """An npz file for the folder's own mean and covariance, as pytorch-fid writes them."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    cli.guarded(lambda: run(cli.read(Options, argv, "evaluate")))


def run(options: Options) -> None:
    """Reads, measures and prints."""
    experiment = cli.changed(presets.preset(options.preset), options.set)
    distance, workers = experiment.evaluation.distance, Workers(device=torch.device(options.device))
    if not isinstance(distance, FrechetDistance):
        raise ValueError(f"a folder of images needs a preset of images; got {options.preset}")
    if not isinstance(distance.reference, Path):
        experiment.reference_images.load("train")
    channels, height, _ = experiment.reference_images.shape
    folder = ImageFolder.of(options.images, channels, height, options.damaged)
    images = folder.load("train")
    distance.prepare(experiment.reference_images)
    print(f"{len(images)} images in {options.images}")
    for name, value in distance.of_images(images, experiment.reference_images, workers).items():
        cli.print_metric(name, value)
    if options.save:
        distance.save(images, options.save, workers)


if __name__ == "__main__":
    cli.start(main)
