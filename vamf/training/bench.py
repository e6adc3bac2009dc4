"""What ``jobs.bench`` does: times a preset's steps, or checks their numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vamf.experiment import Experiment
from vamf.training import benchmark, numerics


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One measurement of this machine."""

    batch: int | None = None
    """Samples in a step; by default the preset's."""
    repeats: int = 20
    """Rounds; medians are shown."""
    threads: int | None = None
    """CPU threads; by default torch's own choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""
    compile: bool = False
    """Time, or check, compiled steps too: minutes of compilation."""
    check: bool = False
    """Compare every precision with float64 instead, on one step's draws."""
    checkpoint: Path | None = None
    """Checkpoint or run to check; by default the preset at its initial weights."""
    baseline: Path | None = None
    """JSON file of an earlier measurement, to set its ratios beside."""

    def run(self, preset: str, experiment: Experiment) -> dict[str, Any]:
        """Measures, prints and returns the figures; ValueError for what cannot be measured."""
        before = load(self.baseline) if self.baseline else {}
        if self.threads:
            torch.set_num_threads(self.threads)
        device, batch = torch.device(self.device), self.batch or experiment.batch
        experiment = experiment.override({"batch": batch})
        print(f"{preset}, batch {batch}, {machine(device)}")
        if self.check:
            found = numerics.check(experiment, self.checkpoint, device, self.compile)
            print(numerics.told(found))
            return {name: deviation._asdict() for name, deviation in found.items()}
        timed = benchmark.measure(preset, experiment, device, self.repeats, self.compile)
        print(benchmark.told(timed, before))
        return timed


def load(path: Path) -> dict[str, float]:
    """The seconds that an earlier measurement wrote; ValueError if the file holds none."""
    try:
        return dict(json.loads(path.read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} must be a file that jobs.bench wrote with --out") from None


def machine(device: torch.device) -> str:
    """What computes, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
