"""Time training steps on this machine, as ratios: ``python -m jobs.bench digits``."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs import cli
from vamf.cluster.quiet import quieten
from vamf.presets import PRESETS
from vamf.training.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time the variants of a training step, in turn, and the start of a run; or check a step."""

    preset: Annotated[Literal["digits", "toy"], tyro.conf.Positional] = "digits"
    """Whose network, data and batch."""
    bench: Annotated[Bench, tyro.conf.arg(name="")] = field(default_factory=Bench)
    out: Path | None = None
    """JSON file to write."""


def main(argv: list[str]) -> None:
    options = tyro.cli(Options, args=argv, prog="bench")
    quieten()
    found = cli.guarded(lambda: options.bench.run(options.preset, PRESETS[options.preset]))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
