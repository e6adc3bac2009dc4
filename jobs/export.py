"""Export a checkpoint: ``python -m jobs.export runs/NAME --out model.safetensors``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs import cli
from vamf import tracking
from vamf.training.export import export


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a checkpoint's moving average, with its experiment, for use elsewhere."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, or a run's folder for its best one."""
    out: Path = Path("model.safetensors")
    """The file to write; jobs.sample and jobs.evaluate take it in the place of a checkpoint."""
    mlflow: Path | None = None
    """A new folder for an MLflow model of it, to be served by `mlflow models serve`."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "export")
    step = cli.guarded(lambda: export(options.checkpoint, options.out))
    print(f"{options.out}: step {step} of {cli.shown(options.checkpoint)}")
    folder = options.mlflow
    if folder:
        cli.guarded(lambda: tracking.save_model(options.out, folder))
        print(f"{folder}: mlflow models serve -m {folder} --env-manager local")


if __name__ == "__main__":
    cli.start(main)
