"""What takes the place of data and weights that are not at hand, where only time is measured."""

import io
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from vamf.data.latents import Latents
from vamf.data.shards import Index, write_shard
from vamf.experiment import Experiment
from vamf.metrics.distances import FrechetDistance
from vamf.metrics.extractors import INCEPTION_ID, InceptionExtractor
from vamf.random import generator

COUNT = 1000
"""Random images, or latents, in the place of a data set."""


UNTRAINED = {"extractor": "randconv64_v1", "weights": None, "also": ()}
"""A distance that needs no weights."""


class Untrained(InceptionExtractor):
    """Inception with random weights: as fast as the published one, and of no other use."""

    id: ClassVar[str] = "inception-v3-untrained"

    def __init__(self) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        class Network(FeatureExtractorInceptionV3):
            def load_state_dict(self, *_: Any, **__: Any) -> None:
                """Leaves the weights as they were drawn."""

        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        self.sha256 = "untrained"
        self.network = Network(INCEPTION_ID, ["2048"], feature_extractor_weights_path=nothing)
        self.to("cpu")


def data_at_hand(experiment: Experiment, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Settings that put random images, or latents, into ``folder`` for data that are missing.

    With a note that says so; none of both if the data are there.
    """
    try:
        experiment.data.load("train")
    except ValueError as error:
        what = "latents" if isinstance(experiment.data, Latents) else "images"
        note = f"{COUNT} random {what} in the place of the data, as {error}"
        return _written(experiment, folder), [note]
    return {}, []


def _written(experiment: Experiment, folder: Path) -> dict[str, Any]:
    data, shape = experiment.data, experiment.data.shape
    classes = experiment.model.classes
    if isinstance(data, Latents):
        _write_latents(data, folder)
        return {"data.root": str(folder)}
    _write_images(shape, classes, folder)
    channels, size, _ = shape
    fields = {"root": str(folder), "channels": channels, "size": size, "classes": classes}
    kind = {"data.kind": "ImageFolder"}
    return kind | {f"data.{name}": value for name, value in fields.items()}


def _write_images(shape: tuple[int, ...], classes: int, folder: Path) -> None:
    pixels = torch.randint(256, (COUNT, *shape), generator=generator("stand-in")).byte()
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        place = folder / f"{index % classes:04d}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{index:06d}.png")


def _write_latents(data: Latents, folder: Path) -> None:
    index = Index(
        vae=data.vae,
        vae_sha256="",
        scaling=0.18215,
        shape=(data.channels, data.size, data.size),
        resolution=data.resolution,
        classes=data.classes,
        count=COUNT,
        shard=COUNT,
        mirrored=data.mirror,
        dtype="float16",
        images="",
    )
    folder.mkdir(parents=True, exist_ok=True)
    index.save(folder)
    moments = torch.randn(index.moments(0), generator=generator("stand-in"))
    write_shard(folder, index, 0, moments, torch.arange(COUNT) % max(data.classes, 1))


def without_weights(experiment: Experiment) -> dict[str, Any]:
    """Settings with which a whole run starts where Inception's weights are missing."""
    distance = experiment.evaluation.distance
    if not isinstance(distance, FrechetDistance) or distance.extractor != "inception":
        return {}
    try:
        distance.prepare(experiment.pictures)
    except ValueError:
        return {f"evaluation.distance.{name}": value for name, value in UNTRAINED.items()}
    return {}
