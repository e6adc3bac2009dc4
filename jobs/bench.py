"""Measures what training costs on this machine: ``python -m jobs.bench digits``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vamf import presets
from vamf.benchmarks.sections import Bench
from vamf.cluster.ray.log_filters import quieten
from vamf.experiment import Experiment
from vamf.files import write_whole

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time steps, sampling, evaluation, start, checkpoints and data; or check a step's numbers."""

    preset: Annotated[str, tyro.conf.Positional] = "digits"
    """Whose network, data and batch: any preset of jobs.train."""
    bench: Annotated[Bench, tyro.conf.arg(name="")] = field(default_factory=Bench)
    set: tuple[str, ...] = ()
    """Other settings of the preset, as `name=value`, such as `compute.precision=bfloat16`."""
    out: Path | None = None
    """JSON file to write."""


def main(argv: list[str]) -> None:
    options, experiment = read(argv)
    quieten()
    found = cli.guarded(lambda: options.bench.run(options.preset, experiment))
    if options.out:
        write_whole(options.out, json.dumps(found, indent=2) + "\n")


def read(argv: list[str]) -> tuple[Options, Experiment]:
    """The options, and the preset with its other settings."""
    options = cli.read(Options, argv, "bench")
    preset = cli.guarded(lambda: presets.preset(options.preset))
    return options, cli.guarded(lambda: cli.changed(preset, options.set))


def check(argv: list[str]) -> None:
    """Exits with an error if the options are invalid; opens none of the files they name."""
    read(argv)


if __name__ == "__main__":
    cli.start(main)
