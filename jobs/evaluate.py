"""Measure a checkpoint: ``python -m jobs.evaluate runs/NAME``; or ``--images``, or ``--check``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vamf.distributed import Workers
from vamf.experiment_settings import Sampler
from vamf.inference.load import load
from vamf.inference.measure import measure_all
from vamf.training.evaluation import protocol

from . import cli, evaluate_check, evaluate_images


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a checkpoint's moving average, with the distance's own anchors beside it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, or a run's folder for its best one."""
    steps: int | None = None
    """Steps of the sampler; by default the experiment's."""
    sampler: Sampler | None = None
    """How samples are made; by default the experiment's."""
    samples: int | None = None
    """Generated samples; by default the experiment's."""
    seed: int | None = None
    """Seed of the evaluation's noise; by default the experiment's, common to all runs."""
    set: tuple[str, ...] = ()
    """Other settings, as `name=value`, such as `data.root=data`."""
    images: Path | None = None
    """Measure this folder of images instead: `--images FOLDER --help` lists the options."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check the FID by known values instead: `--check --help` lists the options."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    if "--check" in argv:
        return evaluate_check.main(argv)
    if of_images(argv):
        return evaluate_images.main(argv)
    options = cli.read(Options, argv, "evaluate")
    workers = Workers(device=torch.device(options.device))
    trained = cli.guarded(lambda: load(options.checkpoint, workers.device))
    choices = {
        "evaluation.sampling_steps": options.steps,
        "evaluation.sampler": options.sampler,
        "evaluation.distance.samples": options.samples,
        "evaluation.seed": options.seed,
    }
    given = {name: value for name, value in choices.items() if value is not None}
    chosen = cli.guarded(lambda: cli.changed(trained.experiment.override(given), options.set))
    cli.guarded(chosen.prepare)
    print(f"{trained.path}, step {trained.step}: {protocol(chosen)}")
    cli.guarded(lambda: measure_all(trained, chosen, workers, cli.print_metric))


def check(argv: list[str]) -> None:
    """Exits with an error if the options are invalid; opens none of the files they name."""
    if "--check" in argv:
        cli.read(evaluate_check.Options, argv, "evaluate")
    elif of_images(argv):
        cli.read(evaluate_images.Options, argv, "evaluate")
    else:
        cli.read(Options, argv, "evaluate")


def of_images(argv: list[str]) -> bool:
    """Whether images are to be measured rather than a checkpoint."""
    return any(argument.split("=")[0] == "--images" for argument in argv)


if __name__ == "__main__":
    cli.start(main)
