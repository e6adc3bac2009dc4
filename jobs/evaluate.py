"""Measure a checkpoint: ``python -m jobs.evaluate runs/NAME --steps 4``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from jobs import cli
from vamf.data.images import Digits
from vamf.distributed import Workers
from vamf.training import inference


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a checkpoint's moving average, with the distance's own anchors beside it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, or a run's folder for its best one."""
    steps: int | None = None
    """Network evaluations a sample; by default the experiment's."""
    samples: int | None = None
    """Generated samples; by default the experiment's."""
    seed: int | None = None
    """Seed of the evaluation's noise; by default the experiment's, common to all runs."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    options = tyro.cli(Options, args=argv, prog="evaluate")
    workers = Workers(device=torch.device(options.device))
    trained = cli.guarded(lambda: inference.load(options.checkpoint, workers.device))
    changes = {
        "evaluation.sampling_steps": options.steps,
        "evaluation.distance.samples": options.samples,
        "evaluation.seed": options.seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    experiment = cli.guarded(lambda: trained.experiment.override(given))
    cli.guarded(experiment.evaluation.distance.prepare)
    print(
        f"{trained.path}, step {trained.step}, {experiment.evaluation.sampling_steps}-step samples"
    )
    for name, measurement in inference.measure(trained, experiment, workers).items():
        print(f"{name:44} {measurement}")
    key = experiment.evaluation.distance.key
    for name, measurement in inference.anchors(experiment, workers).items():
        print(f"{key + ' of ' + name:44} {measurement}")
    if isinstance(experiment.data, Digits):
        counts = inference.class_counts(trained, experiment, 1000, workers)
        print(f"{'classes 0 to 9 in 1000 samples':44} {' '.join(map(str, counts))}")


if __name__ == "__main__":
    main(sys.argv[1:])
