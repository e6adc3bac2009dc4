"""Random data and untrained weights for benchmarks without downloads."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from vamf.compat import torch_fidelity
from vamf.data.source import LatentSource
from vamf.experiment import Experiment
from vamf.metrics.distances import FrechetDistance
from vamf.metrics.extractors import InceptionExtractor
from vamf.rng import generator

COUNT = 1000
"""Number of random images or latents."""

UNTRAINED = {"extractor": "randconv64_v1", "weights": None, "also": ()}
"""Settings of a distance that needs no downloaded weights."""


class Untrained(InceptionExtractor):
    """Inception with random weights, as fast as the published one; for timing only."""

    id: ClassVar[str] = "inception-v3-untrained"

    def __init__(self) -> None:
        self.sha256 = "untrained"
        self.network = torch_fidelity.untrained_inception()
        self.to("cpu")


def replace_missing_data(experiment: Experiment, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Writes random images or latents to ``folder`` if the experiment's data are missing.

    Returns settings that select them and a note that says so; both are empty if the data exist.
    """
    try:
        experiment.data.load("train")
    except ValueError as error:
        what = "latents" if isinstance(experiment.data, LatentSource) else "images"
        note = f"{COUNT} random {what} instead of the data, as {error}"
        return _written(experiment, folder), [note]
    return {}, []


def _written(experiment: Experiment, folder: Path) -> dict[str, Any]:
    data, shape = experiment.data, experiment.data.shape
    classes = experiment.model.classes
    if isinstance(data, LatentSource):
        fields = data.write_random(folder, COUNT)
        return {f"data.{name}": value for name, value in fields.items()}
    _write_images(shape, classes, folder)
    channels, size, _ = shape
    fields = {"root": str(folder), "channels": channels, "size": size, "classes": classes}
    kind = {"data.kind": "ImageFolder"}
    return kind | {f"data.{name}": value for name, value in fields.items()}


def _write_images(shape: tuple[int, ...], classes: int, folder: Path) -> None:
    pixels = torch.randint(256, (COUNT, *shape), generator=generator("stand-in")).byte()
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        parent = folder / f"{index % classes:04d}" if classes else folder
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(parent / f"{index:06d}.png")


def without_weights(experiment: Experiment) -> dict[str, Any]:
    """Settings that replace Inception if its weights are missing; empty otherwise."""
    distance = experiment.evaluation.distance
    if not isinstance(distance, FrechetDistance) or distance.extractor != "inception":
        return {}
    try:
        distance.prepare(experiment.reference_images)
    except ValueError:
        return {f"evaluation.distance.{name}": value for name, value in UNTRAINED.items()}
    return {}
