"""Draw samples from a checkpoint into a PNG: ``python -m jobs.sample runs/NAME --out grid.png``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from jobs import cli
from vamf.training import inference
from vamf.training.evaluation import generate_from
from vamf.training.pictures import pictured, save_picture


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw samples from a checkpoint's moving average."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, or a run's folder for its best one."""
    out: Path = Path("samples.png")
    """The picture to write."""
    steps: int = 1
    """Network evaluations a sample."""
    seed: int = 0
    """Seed of the noise."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    options = tyro.cli(Options, args=argv, prog="sample")
    device = torch.device(options.device)
    trained = cli.guarded(lambda: inference.load(options.checkpoint, device))
    changes = {"evaluation.sampling_steps": options.steps, "evaluation.seed": options.seed}
    experiment = cli.guarded(lambda: trained.experiment.override(changes))
    generate = generate_from(trained.ema, experiment, trained.shape, device)
    save_picture(generate(pictured(trained.shape)).cpu(), options.out)
    print(f"{options.out}: {options.steps}-step samples of {trained.path}, step {trained.step}")


if __name__ == "__main__":
    main(sys.argv[1:])
