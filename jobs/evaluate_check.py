"""Check the FID by known values: ``python -m jobs.evaluate --check --root data``."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from vamf.data.torchvision_sets import CIFAR10
from vamf.metrics import calibration

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure anchors of the FID on CIFAR-10's own images; status 1 unless all of them hold."""

    check: bool = True
    """Selects this check."""
    data: CIFAR10 = field(default_factory=CIFAR10)
    """The original images; JPEG copies give other values."""
    weights: Path | None = None
    """Inception's weights file, if it is not in torch-fidelity's own cache."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute: about 4 hours on a CPU core, a minute on a GPU."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "evaluate")
    found = calibration.known_values(options.data, options.weights, torch.device(options.device))
    failed = False
    while anchor := cli.guarded(lambda: next(found, None)):
        print(anchor, flush=True)
        failed |= not anchor.holds
    if failed:
        cli.stop("the FID measured here is not the published one", status=1)


if __name__ == "__main__":
    cli.start(main)
