"""A trained network off its checkpoint, for sampling and for measuring."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel

from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.tangents import boundary_velocity
from vamf.metrics.distances import FrechetDistance, Measurement
from vamf.metrics.extractors import DigitsExtractor
from vamf.metrics.quantize import to_uint8
from vamf.random import generator
from vamf.training.checkpoint import find_checkpoint
from vamf.training.evaluation import Metrics, distance, generate_from, loss_variance
from vamf.training.trainer import build_networks
from vamf.typing import Sample


class Trained(NamedTuple):
    """What a checkpoint holds for use: the moving average, and where it came from."""

    experiment: Experiment
    ema: AveragedModel
    path: Path
    step: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return self.experiment.data.load("test").shape


def load(path: Path, device: torch.device) -> Trained:
    """Loads a checkpoint, or the best one of a run's folder; ValueError if it is not usable."""
    checkpoint = find_checkpoint(path)
    experiment = checkpoint.experiment()
    shape = experiment.data.load("test").shape
    _, ema = build_networks(experiment, shape, device)
    ema.load_state_dict(checkpoint.load(device)["ema"])
    return Trained(experiment, ema, checkpoint.path, checkpoint.step)


def measure(trained: Trained, experiment: Experiment, workers: Workers) -> Metrics:
    """Distance and loss variance of a trained network, by the evaluation that is asked for."""
    beta = experiment.beta(trained.step / experiment.steps)
    proxy = boundary_velocity(trained.ema)
    return distance(trained.ema, experiment, workers) | loss_variance(
        trained.ema, proxy, beta, experiment, workers
    )


def anchors(experiment: Experiment, workers: Workers) -> dict[str, Measurement]:
    """The same Fréchet distance of real test images, and of uniform noise, to read others by.

    Test images are drawn with replacement, as many as the figure takes. Empty for points.
    """
    measure = experiment.evaluation.distance
    if not isinstance(measure, FrechetDistance):
        return {}
    test, seed = experiment.data.load("test"), experiment.evaluation.seed

    def real(indices: range) -> Sample:
        return test.draw(len(indices), generator(seed, "anchor", indices.start)).to(workers.device)

    def uniform(indices: range) -> Sample:
        g = generator(seed, "uniform", indices.start)
        return (torch.rand(len(indices), *test.shape, generator=g) * 2 - 1).to(workers.device)

    sources = {"real test images": real, "uniform noise": uniform}
    return {
        name: next(iter(measure(source, experiment.data, workers, seed).values()))
        for name, source in sources.items()
    }


def class_counts(trained: Trained, experiment: Experiment, n: int, workers: Workers) -> list[int]:
    """How many of ``n`` generated digits the shipped classifier takes for each of 0 to 9."""
    generate = generate_from(trained.ema, experiment, trained.shape, workers.device)
    classifier = DigitsExtractor().to(workers.device)
    return classifier.classify(to_uint8(generate(range(n)))).bincount(minlength=10).tolist()
