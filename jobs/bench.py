"""Time training steps on this machine, as ratios: ``python -m jobs.bench digits``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from jobs import cli
from vamf.presets import PRESETS
from vamf.training import benchmark


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time the variants of a training step, in turn, and the start of a run."""

    preset: Annotated[Literal["digits", "toy"], tyro.conf.Positional] = "digits"
    """Whose network, data and batch."""
    batch: int | None = None
    """Samples in a step; by default the preset's."""
    repeats: int = 20
    """Rounds; medians are shown."""
    threads: int | None = None
    """CPU threads; by default torch's own choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""
    out: Path | None = None
    """JSON file to write."""


def main(argv: list[str]) -> None:
    options = tyro.cli(Options, args=argv, prog="bench")
    if options.threads:
        torch.set_num_threads(options.threads)
    device, base = torch.device(options.device), PRESETS[options.preset]
    experiment = cli.guarded(lambda: base.override({"batch": options.batch or base.batch}))
    steps = benchmark.variants(experiment, device)
    seconds = benchmark.time_steps(steps, device, options.repeats)
    reference = next(iter(seconds.values()))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{options.preset}, batch {experiment.batch}, {name}, {torch.get_num_threads()} threads")
    for variant, value in seconds.items():
        print(f"{variant:36} {value * 1e3:8.1f} ms  {value / reference:5.2f} x")
    stalls = benchmark.checkpoint_stalls(experiment, device)
    for how, value in stalls.items():
        share = value / experiment.checkpoint.every / seconds["MeanFlow, beta = 0.5"]
        print(f"{f'checkpoint, {how}':36} {value * 1e3:8.1f} ms  {share:.4%} of its interval")
    memory, start = benchmark.peak_memory(device), benchmark.seconds_to_first_step(options.preset)
    print(f"peak memory {memory:.0f} MiB; {start:.1f} s from the command to the first step")
    if options.out:
        found = {"seconds": seconds, "peak_memory_mib": memory, "seconds_to_first_step": start}
        options.out.write_text(json.dumps(found | {"checkpoint_stalls": stalls}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
