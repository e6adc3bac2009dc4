"""Export a checkpoint: ``python -m jobs.export runs/NAME --out model.safetensors``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vamf import tracking
from vamf.inference.export import export
from vamf.run_layout import RUN
from vamf.tracking import Run
from vamf.tracking.model import save_model
from vamf.tracking.registry import register

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a checkpoint's moving average, with its experiment, for use elsewhere."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, or a run's folder for its best one."""
    out: Path = Path("model.safetensors")
    """The file to write; jobs.sample and jobs.evaluate take it in the place of a checkpoint."""
    mlflow: Path | None = None
    """A new folder for an MLflow model of it, to be served by `mlflow models serve`."""
    register: str | None = None
    """The name under which MLflow registers it, as a model of its run; the new version gets the
    alias `best`."""
    tracking: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or else the run's own."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "export")
    step = cli.guarded(lambda: export(options.checkpoint, options.out))
    print(f"{options.out}: step {step} of {cli.shown(options.checkpoint)}")
    folder = options.mlflow
    if folder:
        cli.guarded(lambda: save_model(options.out, folder))
        print(f"{folder}: mlflow models serve -m {folder} --env-manager local")
    if name := options.register:
        run = cli.guarded(lambda: _run(options))
        print(f"registered {cli.guarded(lambda: register(run, options.out, step, name))}")


def _run(options: Options) -> Run:
    """The MLflow run of a run's folder or of a checkpoint in it; ValueError if it has none."""
    given = options.checkpoint.resolve()
    folder = next((place for place in (given, *given.parents[:2]) if (place / RUN).exists()), None)
    if folder is None:
        raise ValueError(f"a model to register must be of a run with a {RUN}; got {given}")
    uri = tracking.address(folder.parent, options.tracking, tracking.address_of(folder))
    return Run.load(folder / RUN, uri)


if __name__ == "__main__":
    cli.start(main)
