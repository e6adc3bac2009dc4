"""The results of one set, stored as a JSON file."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.files import write_whole
from vamf.reproduction.protocol import SETS

Grid = list[list[float]]
"""One number for each member, seeds x betas; NaN for a member whose loss was not finite."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of a finished set."""

    set: str
    betas: list[float]
    seeds: list[int]
    sw1: Grid
    """Means over repetitions of the evaluation."""
    sw2: Grid
    repetition_error: list[float]
    """Standard errors of one member's SW1 and SW2, root mean square over members."""
    trace: Grid
    """Trace of the covariance of a batch's mean gradient, over the second half of training."""
    traces: list[Grid]
    """The traces of all measurements."""
    trace_steps: list[int]
    floor: list[list[float]]
    """SW1 and SW2 between real points: mean and its standard error."""
    lost: list[list[int]]
    """[seed, index of beta, step] of members whose loss was not finite."""
    seconds: float
    """Wall-clock seconds of training, shared with the sets that were trained together."""
    together: int
    """How many sets were trained together."""
    device: str
    torch: str
    experiment: dict[str, Any]
    command: str

    def grid(self, name: str) -> Tensor:
        """``sw1``, ``sw2`` or ``trace`` as (seeds, betas) float64."""
        return torch.tensor(getattr(self, name), dtype=torch.float64)

    def save(self, folder: Path) -> None:
        """Writes ``<set>.json``."""
        text = json.dumps(_finite(asdict(self)), allow_nan=False)
        write_whole(folder / f"{self.set}.json", text + "\n")

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Reads what ``save`` wrote."""
        data = json.loads(path.read_text())
        numbers = ("sw1", "sw2", "repetition_error", "trace", "traces", "floor")
        return cls(**data | {name: _with_nan(data[name]) for name in numbers})


def _finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


def load_all(folder: Path) -> dict[str, Result]:
    """All finished sets in a folder by name; may be empty."""
    files = {name: folder / f"{name}.json" for name in SETS}
    return {name: Result.load(file) for name, file in files.items() if file.exists()}
