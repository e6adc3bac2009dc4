"""Measures a trained network, and reference distances to compare with."""

from collections.abc import Callable
from dataclasses import replace

import torch

from vamf import cache
from vamf.data.dataset import Labelled
from vamf.data.source import LatentSource
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.tangents import boundary_velocity
from vamf.inference.load import Trained
from vamf.metrics.cnn import SHIPPED
from vamf.metrics.distances import FrechetDistance, Measurement
from vamf.metrics.extractors import ClassifierExtractor
from vamf.metrics.quantize import to_uint8
from vamf.rng import generator
from vamf.training.evaluation import Metrics, distance, generate_from, loss_variance
from vamf.typing import Sample


def measure(trained: Trained, experiment: Experiment, workers: Workers) -> Metrics:
    """Distance and loss variance of a trained network, by the evaluation of ``experiment``.

    A DDPM has only the distance.
    """
    measured = distance(trained.ema, experiment, workers)
    if experiment.loss.learns_velocity:
        proxy = boundary_velocity(trained.ema)
        measured |= loss_variance(trained.ema, proxy, trained.beta, experiment, workers)
    return measured


def anchors(experiment: Experiment, workers: Workers) -> dict[str, Measurement]:
    """The same Fréchet distance for real test images and for uniform noise, as references.

    Test images are drawn with replacement, as many as the distance uses. Test latents are decoded:
    their distance is the smallest that a model of latents can reach. Empty for points. The
    distances are measured once on a machine, then read from the cache of reference statistics.
    """
    distance = experiment.evaluation.distance
    if not isinstance(distance, FrechetDistance):
        return {}
    measure = replace(distance, also=())
    key = _protocol_of_anchors(experiment, measure, workers)
    found = cache.estimates(key, workers, lambda: _anchors(experiment, measure, workers))
    return {name: Measurement(*pair) for name, pair in found.items()}


def _protocol_of_anchors(
    experiment: Experiment, measure: FrechetDistance, workers: Workers
) -> dict[str, str]:
    """All settings that the reference distances depend on."""
    data, test = experiment.original, experiment.original.load("test")
    assert isinstance(test, Labelled)  # data of points have no such distance
    decoder = "none"
    if isinstance(data, LatentSource):
        decoder = data.decoder_fingerprint(workers.device)
    return measure.protocol(experiment.reference_images, workers) | {
        "test": test.fingerprint(),
        "decoder": decoder,
        "seed": str(experiment.evaluation.seed),
        "version": "1",
    }


def _anchors(
    experiment: Experiment, measure: FrechetDistance, workers: Workers
) -> dict[str, Measurement]:
    test, seed = experiment.original.load("test"), experiment.evaluation.seed
    images, decode = experiment.reference_images, experiment.decoder(workers.device)

    def real(indices: range) -> Sample:
        g = generator(seed, "anchor", indices.start)
        return decode(test.draw(len(indices), g).to(workers.device))

    def uniform(indices: range) -> Sample:
        g = generator(seed, "uniform", indices.start)
        return (torch.rand(len(indices), *images.shape, generator=g) * 2 - 1).to(workers.device)

    name = "real test images" if images is experiment.original else "real test latents, decoded"
    sources = {name: real, "uniform noise": uniform}
    return {
        name: next(iter(measure(source, images, workers, seed).values()))
        for name, source in sources.items()
    }


def measure_all(
    trained: Trained,
    experiment: Experiment,
    workers: Workers,
    report: Callable[[str, object], None],
) -> None:
    """Calls ``report`` with name and value of each result of ``jobs.evaluate`` as it is known."""
    for name, measurement in measure(trained, experiment, workers).items():
        report(name, measurement)
    key = experiment.evaluation.distance.key
    for name, measurement in anchors(experiment, workers).items():
        report(f"{key} of {name}", measurement)
    distance = experiment.evaluation.distance
    if isinstance(distance, FrechetDistance) and distance.extractor in SHIPPED:
        classifier = ClassifierExtractor(distance.extractor).to(workers.device)
        generate = generate_from(trained.ema, experiment, trained.shape, workers.device)
        counts = classifier.counts(to_uint8(generate(range(1000))))
        report("classes 0 to 9 in 1000 samples", " ".join(map(str, counts)))
