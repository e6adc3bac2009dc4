"""A trained network off its checkpoint, for sampling and for measuring."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel

from vamf import cache
from vamf.data import vae
from vamf.data.dataset import Labelled
from vamf.data.latents import Latents
from vamf.diagnostics.adaptive import Adapted
from vamf.distributed import Workers
from vamf.experiment import Experiment
from vamf.flow.tangents import boundary_velocity
from vamf.metrics.cnn import SHIPPED
from vamf.metrics.distances import FrechetDistance, Measurement
from vamf.metrics.extractors import ClassifierExtractor
from vamf.metrics.quantize import to_uint8
from vamf.random import generator
from vamf.training.checkpoint import find_checkpoint
from vamf.training.evaluation import Metrics, distance, generate_from, loss_variance
from vamf.training.export import SUFFIX, read_export
from vamf.training.networks import build_networks
from vamf.training.objective import beta_at
from vamf.training.precision import allow
from vamf.training.trainer import Trainer
from vamf.typing import BetaAt, Sample


class Trained(NamedTuple):
    """What a checkpoint holds for use: the moving average, and where it came from."""

    experiment: Experiment
    ema: AveragedModel
    beta: BetaAt
    """beta at the checkpoint's step."""
    path: Path
    step: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return self.experiment.data.shape


def load(path: Path, device: torch.device) -> Trained:
    """Loads a checkpoint, the best one of a run's folder, or an exported file; needs no data.

    Raises ValueError if it is not usable.
    """
    trained = _exported(path, device) if path.suffix == SUFFIX else _saved(path, device)
    allow(trained.experiment.compute)  # as in training: TF32 would be cuDNN's own choice
    return trained


def _saved(path: Path, device: torch.device) -> Trained:
    checkpoint = find_checkpoint(path)
    experiment = checkpoint.experiment()
    _, ema = build_networks(experiment, experiment.data.shape, device)
    state = checkpoint.load(device)
    ema.load_state_dict(state["ema"])
    adapted = Adapted(**state["beta"]) if "beta" in state else None
    beta = beta_at(experiment, checkpoint.step, adapted)
    return Trained(experiment, ema, beta, checkpoint.path, checkpoint.step)


def _exported(path: Path, device: torch.device) -> Trained:
    experiment, step, weights, adapted = read_export(path)
    _, ema = build_networks(experiment, experiment.data.shape, device)
    try:
        ema.module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit its own experiment: {reason}") from None
    learnt = {name: value.to(device) for name, value in adapted.items()}
    beta = beta_at(experiment, step, Adapted(**learnt) if learnt else None)
    return Trained(experiment, ema, beta, path, step)


def load_trainer(path: Path, device: torch.device, changes: Mapping[str, Any]) -> Trainer:
    """A trainer at a checkpoint's state, with changes to its experiment, by dotted name, not None.

    Raises ValueError if the checkpoint is not usable, or lacks what the changes ask for.
    """
    checkpoint = find_checkpoint(path)
    changes = {name: value for name, value in changes.items() if value is not None}
    experiment = checkpoint.experiment().override(changes)
    trainer = Trainer(experiment, experiment.data.load("train"), Workers(device=device))
    try:
        trainer.load_state_dict(checkpoint.load(device))
    except RuntimeError as error:  # another network, for instance one without a velocity head
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint.path} does not fit {changes}: {reason}") from None
    return trainer


def measure(trained: Trained, experiment: Experiment, workers: Workers) -> Metrics:
    """Distance and loss variance of a trained network, by the evaluation that is asked for.

    Of a DDPM the distance alone.
    """
    measured = distance(trained.ema, experiment, workers)
    if experiment.ddpm is None:
        proxy = boundary_velocity(trained.ema)
        measured |= loss_variance(trained.ema, proxy, trained.beta, experiment, workers)
    return measured


def anchors(experiment: Experiment, workers: Workers) -> dict[str, Measurement]:
    """The same Fréchet distance of real test images, and of uniform noise, to read others by.

    Test images are drawn with replacement, as many as the figure takes; of latents they are
    decoded, and their distance is the least that a model of latents can have. Empty for points.
    Measured once on a machine, then read from the cache of reference statistics.
    """
    distance = experiment.evaluation.distance
    if not isinstance(distance, FrechetDistance):
        return {}
    measure = replace(distance, also=())
    key = _protocol_of_anchors(experiment, measure, workers)
    found = cache.figures(key, workers, lambda: _anchors(experiment, measure, workers))
    return {name: Measurement(*figure) for name, figure in found.items()}


def _protocol_of_anchors(
    experiment: Experiment, measure: FrechetDistance, workers: Workers
) -> dict[str, str]:
    """All that the anchors depend on."""
    data, test = experiment.data, experiment.data.load("test")
    assert isinstance(test, Labelled)  # points have none
    decoder = vae.load(data.vae, workers.device).sha256 if isinstance(data, Latents) else "none"
    return measure.protocol(experiment.pictures, workers) | {
        "test": test.fingerprint(),
        "decoder": decoder,
        "seed": str(experiment.evaluation.seed),
        "version": "1",
    }


def _anchors(
    experiment: Experiment, measure: FrechetDistance, workers: Workers
) -> dict[str, Measurement]:
    test, seed = experiment.data.load("test"), experiment.evaluation.seed
    pictures, decode = experiment.pictures, experiment.decoder(workers.device)

    def real(indices: range) -> Sample:
        g = generator(seed, "anchor", indices.start)
        return decode(test.draw(len(indices), g).to(workers.device))

    def uniform(indices: range) -> Sample:
        g = generator(seed, "uniform", indices.start)
        return (torch.rand(len(indices), *pictures.shape, generator=g) * 2 - 1).to(workers.device)

    name = "real test images" if pictures is experiment.data else "real test latents, decoded"
    sources = {name: real, "uniform noise": uniform}
    return {
        name: next(iter(measure(source, pictures, workers, seed).values()))
        for name, source in sources.items()
    }


def measure_all(
    trained: Trained, experiment: Experiment, workers: Workers, tell: Callable[[str, object], None]
) -> None:
    """Tells name and figure of everything that ``jobs.evaluate`` shows, as soon as it is known."""
    for name, measurement in measure(trained, experiment, workers).items():
        tell(name, measurement)
    key = experiment.evaluation.distance.key
    for name, measurement in anchors(experiment, workers).items():
        tell(f"{key} of {name}", measurement)
    distance = experiment.evaluation.distance
    if isinstance(distance, FrechetDistance) and distance.extractor in SHIPPED:
        classifier = ClassifierExtractor(distance.extractor).to(workers.device)
        generate = generate_from(trained.ema, experiment, trained.shape, workers.device)
        counts = classifier.counts(to_uint8(generate(range(1000))))
        tell("classes 0 to 9 in 1000 samples", " ".join(map(str, counts)))
