"""Measure the beta landscape of a checkpoint: ``python -m jobs.probe runs/NAME``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from vamf.cluster.ray.log_filters import quieten
from vamf.diagnostics.probe import Probe
from vamf.inference import load
from vamf.training.landscape_report import report

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure loss, variance, bias and gradient error of a checkpoint at every beta at once."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, or a run's folder for its best one."""
    pairs: int = 16
    """Pairs of batches, at least 2: they give the errors."""
    bins: int = 5
    """Equal bins of t."""
    batch: int | None = None
    """Samples in a batch; by default the training's."""
    weighted: bool = False
    """Weight samples as the run's loss does at its own beta."""
    proxy: Literal["ema", "online", "head", "oracle", "batch", "reference"] | None = None
    """Another proxy than the run's."""
    reference: Path | None = None
    """Checkpoint of the proxy `reference`."""
    ratios: int | None = None
    """Test samples, at least 4, to measure variance ratio, Jacobian and curvature on as well."""
    out: Path = Path("landscape")
    """Files to write, without their suffixes .json and .png."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    quieten()
    cli.guarded(lambda: _probe(cli.read(Options, argv, "probe")))


def _probe(options: Options) -> None:
    plan = Probe(pairs=options.pairs, bins=options.bins, weighted=options.weighted)
    changes = {"proxy": options.proxy, "reference": options.reference, "batch": options.batch}
    trainer = load.load_trainer(options.checkpoint, torch.device(options.device), changes)
    ratios = trainer.ratios(options.ratios) if options.ratios is not None else None
    where = f"{cli.shown(options.checkpoint)}, step {trainer.step}"
    print(f"{where}, {trainer.experiment.batch} samples a batch")
    print(report(trainer.probe(plan), options.out, ratios))


if __name__ == "__main__":
    cli.start(main)
