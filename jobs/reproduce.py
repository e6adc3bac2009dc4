"""The tables of arXiv 2605.09235 on points: ``python -m jobs.reproduce --sets two_moons``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vamf import tracking
from vamf.benchmarks import ensemble_step
from vamf.reproduction import publish
from vamf.reproduction.protocol import Protocol
from vamf.reproduction.runner import Computing
from vamf.store import storage_path

from . import cli

FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train every set at every beta and seed, and compare with beta = 0 and with the paper.

    Or, with --objectives, by every objective, and compare with MeanFlow."""

    protocol: Annotated[Protocol, FLAT] = field(default_factory=Protocol)
    computing: Annotated[Computing, FLAT] = field(default_factory=Computing)
    storage: str = "runs"
    """Folder for runs."""
    tracking: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or else a file in the storage."""
    name: str | None = None
    """The folder in the storage, new or to be resumed; by default made from the time."""
    table: Path | None = None
    """Only write the table of what is finished in this folder, and print it."""
    bench: bool = False
    """Only time ensembles against single runs, on the first set."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "reproduce")
    protocol, computing = options.protocol, options.computing
    if (folder := options.table) is not None:
        print(cli.guarded(lambda: publish.render(folder)).read_text(encoding="utf-8"), end="")
        return
    cli.guarded(protocol.check)
    cli.guarded(computing.prepare)
    if options.bench:
        print(ensemble_step.speeds(protocol, torch.device(computing.device)))
        return
    storage = cli.guarded(lambda: cli.folder(storage_path(options.storage)))
    uri = cli.guarded(lambda: tracking.address(storage, options.tracking))
    new, name = options.name is None, options.name or cli.default_name("reproduce", storage)
    cli.guarded(lambda: publish.reproduce(protocol, computing, storage / name, uri, numbered=new))


if __name__ == "__main__":
    cli.start(main)
