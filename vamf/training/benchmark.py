"""Timings on this machine, as tables: medians of synchronised repetitions, and ratios."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Step = Callable[[], object]

FORMATS = {"ms": ".2f", "s": ".2f", "%": ".3f", "MiB": ".0f", "images/s": ".0f", "samples/s": ".0f"}
"""How figures of a unit are shown."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of a table."""

    value: float
    unit: str
    ratio: float | None = None
    """To the first row of the table."""
    mib: float | None = None
    """Memory that it took at most, where that is known of it alone: on a GPU."""

    def __str__(self) -> str:
        text = f"{self.value:12{FORMATS[self.unit]}} {self.unit:9}"
        text += "" if self.ratio is None else f" {self.ratio:5.2f} x"
        return text + ("" if self.mib is None else f" {self.mib:7.0f} MiB")


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one section of ``jobs.bench`` found."""

    rows: Mapping[str, Row] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What is to be known of the figures, or why one is missing."""

    def told(self, before: Mapping[str, Row]) -> str:
        """A line for each figure, with an earlier measurement's beside it, and for each note."""
        lines = [f"  {name:44}{row}{_beside(before.get(name))}" for name, row in self.rows.items()]
        notes = [f"  {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in [*lines, *notes])

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"rows": {name: asdict(row) for name, row in self.rows.items()}, "notes": self.notes}


def _beside(row: Row | None) -> str:
    if row is None:
        return ""
    ratio = "" if row.ratio is None else f", {row.ratio:.2f} x"
    return f"   before {row.value:{FORMATS[row.unit]}} {row.unit}{ratio}"


def time_steps(
    steps: Mapping[str, Step], device: torch.device, repeats: int, *, together: int = 1
) -> dict[str, float]:
    """Median seconds of each step over ``repeats`` rounds of all of them in turn, synchronised.

    In a round ``together`` of a kind follow each other without waiting, as they do in training.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 2):
        for name, step in steps.items():
            elapsed = timed(step, device, together)
            if round_ >= 2:  # the first two warm up
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(step: Step, device: torch.device, together: int = 1) -> float:
    """Seconds of one of ``together`` steps, until the device has done them."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(together):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / together


def synchronise(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def process_memory() -> float:
    """MiB that this process has held at most, of the CPU's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
