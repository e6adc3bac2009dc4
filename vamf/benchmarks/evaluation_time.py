"""Measures the time of sampling and evaluation on this machine."""

import torch

from vamf.benchmarks.step_time import Subject, trainer_of
from vamf.benchmarks.synthetic_inputs import Untrained
from vamf.benchmarks.timing import Row, Step, Table, time_steps, timed
from vamf.experiment import Experiment
from vamf.flow.tangents import boundary_velocity
from vamf.metrics.distances import BLOCKS, FrechetDistance
from vamf.metrics.extractors import ENLARGED_AT_ONCE, Extractor, build
from vamf.metrics.frechet import frechet_with_error
from vamf.metrics.gathering import AT_ONCE, gather
from vamf.metrics.quantize import to_uint8
from vamf.rng import generator
from vamf.training.evaluation import evaluate, generate_from, gradient_variance, loss_variance
from vamf.training.step.memory import samples_beside
from vamf.training.step.networks import as_sampled
from vamf.training.step.trainer import Trainer

AT_MOST = 3
"""Most repetitions: unlike a step, each takes many evaluations of a network."""

TOO_LONG_S = 120.0
"""An evaluation that is expected to take longer is not run."""


def sampling(subject: Subject) -> Table:
    """Samples per second of one-step sampling and of the experiment's own sampler."""
    own = subject.experiment
    chosen = own.evaluation
    how = f"{chosen.sampling_steps}-step {chosen.sampler}, the preset's own"
    samplers = {how: own}
    if own.loss.learns_velocity:
        one = {"evaluation.sampler": "average", "evaluation.sampling_steps": 1}
        single = own.override(one)
        samplers = {"1-step average": single} | ({} if single == own else samplers)
    trainer = trainer_of(own, subject.device)
    steps = {name: _generating(e, trainer) for name, e in samplers.items()}
    seconds = time_steps(steps, subject.device, min(subject.repeats, AT_MOST))
    first, n = next(iter(seconds.values())), _at_once(own)
    rows = {
        name: Row(value=n / s, unit="samples/s", ratio=first / s) for name, s in seconds.items()
    }
    return Table(rows=rows, notes=(f"{n} at once, their noise drawn on the host",))


def _at_once(experiment: Experiment) -> int:
    distance = experiment.evaluation.distance
    return AT_ONCE if isinstance(distance, FrechetDistance) else distance.samples


def _generating(experiment: Experiment, trainer: Trainer) -> Step:
    shape, device = experiment.data.shape, trainer.workers.device
    generate = generate_from(as_sampled(trainer.ema), experiment, shape, device)
    return lambda: generate(range(_at_once(experiment)))


def evaluation(subject: Subject) -> Table:
    """Features per second, seconds of a whole evaluation, and its share of a run."""
    experiment, device = subject.experiment, subject.device
    distance, every = experiment.evaluation.distance, experiment.evaluation.every
    trainer = trainer_of(experiment, device)
    rows: dict[str, Row] = {}
    notes: tuple[str, ...] = ()
    replacement: Extractor | None = None
    if isinstance(distance, FrechetDistance):
        extractor, notes = _extractor(distance)
        extractor.to(device)
        replacement = extractor if notes else None
        per_second = _features_per_second(extractor, subject)
        rows[f"features of {extractor.id}"] = Row(value=per_second, unit="images/s")
        generating = {"": _generating(experiment, trainer)}
        made = time_steps(generating, device, 1)[""] / AT_ONCE
        expected = distance.samples * (made + 1 / per_second)
        if expected > TOO_LONG_S:
            return Table(
                rows=rows,
                notes=(
                    *notes,
                    f"one evaluation: not run, as its samples and "
                    f"features alone would take {expected:.0f} s",
                ),
            )
    whole = _whole(trainer, replacement)
    if replacement is None:
        whole()  # caches the statistics of the real images
    seconds = timed(whole, device)
    rows["one evaluation"] = Row(value=seconds, unit="s")
    share = seconds / (seconds + every * subject.step_seconds)
    rows[f"its share of a run, every {every} steps"] = Row(value=100 * share, unit="%")
    return Table(rows=rows, notes=notes)


def _extractor(distance: FrechetDistance) -> tuple[Extractor, tuple[str, ...]]:
    """The experiment's extractor, or an untrained one of equal cost and a note that says so."""
    try:
        return build(distance.extractor, distance.weights), ()
    except ValueError as error:
        if distance.extractor != "inception":
            raise
        why = str(error).partition(", ")[0]
        return Untrained(), (f"of random weights, which cost the same: {why}",)


def _features_per_second(extractor: Extractor, subject: Subject) -> float:
    shape, device = subject.experiment.reference_images.shape, subject.device
    n = AT_ONCE if device.type == "cuda" else 4 * ENLARGED_AT_ONCE["cpu"]
    pixels = torch.randint(256, (n, *shape), generator=generator("pixels")).byte().to(device)
    repeats = min(subject.repeats, AT_MOST)
    return n / time_steps({"": lambda: extractor(pixels)}, device, repeats)[""]


def _whole(trainer: Trainer, replacement: Extractor | None) -> Step:
    """An evaluation as in a run; ``replacement``, if given, is used as the extractor."""
    if replacement is None:
        return lambda: evaluate(trainer)
    e, workers, shape = trainer.experiment, trainer.workers, trainer.dataset.shape
    u = as_sampled(trainer.ema)
    generate = generate_from(u, e, shape, workers.device)
    samples = e.evaluation.distance.samples

    def pixels(indices: range) -> torch.Tensor:
        return to_uint8(generate(indices))

    def whole() -> None:
        made = gather(replacement, pixels, samples, BLOCKS, workers, keep=False)
        frechet_with_error(made.blocks, made.blocks[0].statistics())
        if e.loss.learns_velocity:
            loss_variance(u, boundary_velocity(u), trainer.beta, e, workers)
            own = trainer.net, trainer.v_hat, trainer.beta, e, workers
            gradient_variance(*own, samples_beside(trainer))

    return whole
