"""Times functions by medians of synchronised repetitions, and formats tables of the results."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Step = Callable[[], object]

FORMATS = {"ms": ".2f", "s": ".2f", "%": ".3f", "MiB": ".0f", "images/s": ".0f", "samples/s": ".0f"}
"""The number format of each unit."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value of a table."""

    value: float
    unit: str
    ratio: float | None = None
    """Ratio to the first row of the table."""
    mib: float | None = None
    """Peak memory, which is measured on a GPU only."""

    def __str__(self) -> str:
        text = f"{self.value:12{FORMATS[self.unit]}} {self.unit:9}"
        text += "" if self.ratio is None else f" {self.ratio:5.2f} x"
        return text + ("" if self.mib is None else f" {self.mib:7.0f} MiB")


@dataclass(frozen=True, kw_only=True)
class Table:
    """The results of one section of the command ``bench``."""

    rows: Mapping[str, Row] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Remarks on the values, or the reason why one is missing."""

    def format(self, before: Mapping[str, Row]) -> str:
        """A line for each value, with an earlier measurement's value, and for each note."""
        lines = [f"  {name:44}{row}{_earlier(before.get(name))}" for name, row in self.rows.items()]
        notes = [f"  {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in [*lines, *notes])

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON stores it."""
        return {"rows": {name: asdict(row) for name, row in self.rows.items()}, "notes": self.notes}


def _earlier(row: Row | None) -> str:
    if row is None:
        return ""
    ratio = "" if row.ratio is None else f", {row.ratio:.2f} x"
    return f"   before {row.value:{FORMATS[row.unit]}} {row.unit}{ratio}"


def time_steps(
    steps: Mapping[str, Step], device: torch.device, repeats: int, *, together: int = 1
) -> dict[str, float]:
    """Median seconds of each step over ``repeats`` rounds, in each of which all steps take a turn.

    In a turn ``together`` calls of a step follow each other without synchronisation, as in
    training.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 2):
        for name, step in steps.items():
            elapsed = timed(step, device, together)
            if round_ >= 2:  # two rounds of warm-up
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(step: Step, device: torch.device, together: int = 1) -> float:
    """Mean seconds of ``together`` steps, until the device has completed them."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(together):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / together


def synchronise(device: torch.device) -> None:
    """Waits for a GPU to complete its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def process_memory() -> float:
    """Peak MiB of this process's CPU memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
