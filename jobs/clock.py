"""Steps of every objective in the same seconds: ``python -m jobs.clock digits --seconds 60``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vamf import commands, presets, user_modules
from vamf.benchmarks.one_clock import measure
from vamf.benchmarks.sections import machine
from vamf.cluster.ray.log_filters import quieten
from vamf.experiment import Experiment
from vamf.files import write_whole

from . import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time a step of each objective here, and write a search space in which each trains equally
    long."""

    preset: Annotated[str, tyro.conf.Positional] = "digits"
    """Whose network, data and batch: any preset of jobs.train."""
    seconds: float = 60.0
    """Seconds of each training's steps, without compiling kernels and without evaluation."""
    set: tuple[str, ...] = ()
    """Other settings of the preset, as `name=value`; the search needs them, too. With
    `proxy=reference reference=RUN` the distillation of that run's flow is an objective."""
    out: Path | None = None
    """The search space to write; by default PRESET_SECONDSs.py."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""


def main(argv: list[str]) -> None:
    options, experiment = read(argv)
    quieten()
    name = user_modules.short(options.preset)
    out = options.out or Path(f"{name}_{options.seconds:g}s.py")
    if out.suffix != ".py" or out.exists():
        cli.stop(f"--out must be a new file that ends in .py; got {out}")
    device = torch.device(options.device)
    clock = cli.guarded(lambda: measure(experiment, device, options.seconds))
    print(clock.format())
    title = f"{name}, {options.seconds:g} s of training for each objective, on {machine(device)}"
    write_whole(out, clock.space(options.preset, title))
    more = (f"--set {' '.join(options.set)}",) if options.set else ()
    trials = ("--trials", len(clock.paces), "--seeds", 3)
    print(f"search     {commands.shown('tune', out, *trials, *more)}")


def read(argv: list[str]) -> tuple[Options, Experiment]:
    """The options, and the preset with its other settings."""
    options = cli.read(Options, argv, "clock")
    preset = cli.guarded(lambda: presets.preset(options.preset))
    return options, cli.guarded(lambda: cli.changed(preset, options.set))


def check(argv: list[str]) -> None:
    """Exits with an error if the options are invalid; opens none of the files they name."""
    read(argv)


if __name__ == "__main__":
    cli.start(main)
