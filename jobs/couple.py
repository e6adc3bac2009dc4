"""Make rectified couplings of a flow: ``python -m jobs.couple runs/NAME --count N --out DIR``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vamf.inference import load
from vamf.inference.coupling import Coupling, couple

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make pairs of noise and the sample that a flow makes of it; run it again to resume."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, a run's folder for its best one, or an exported file: of flow matching, or of
    another objective whose u(z, t, t) is a velocity."""
    out: Path = Path("data/couplings")
    """Folder for the pairs; what it holds of them stays, and what is damaged is made anew."""
    coupling: Annotated[Coupling, tyro.conf.arg(name="")]
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    options = cli.read(Options, argv, "couple")
    trained = cli.guarded(lambda: load.load(options.checkpoint, torch.device(options.device)))
    lines = couple(options.coupling, trained, options.out)
    while line := cli.guarded(lambda: next(lines, None), resume="the same command"):
        print(line, flush=True)


if __name__ == "__main__":
    cli.start(main)
