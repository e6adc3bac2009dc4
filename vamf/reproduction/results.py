"""The results of one program, stored as a JSON file."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.files import write_whole
from vamf.reproduction.protocol import PROGRAMS, Program

Grid = list[list[float]]
"""One number for each member, seeds x betas; NaN for a member whose loss was not finite."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of a finished program: a set at all betas, or by one objective at its beta."""

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
    """Wall-clock seconds of training, shared with the programs that were trained together."""
    together: int
    """How many programs were trained together."""
    device: str
    torch: str
    experiment: dict[str, Any]
    command: str
    objective: str | None = None
    """The objective's name, if objectives are compared."""

    @property
    def program(self) -> Program:
        """What was trained."""
        return Program(self.set, self.objective)

    def label(self, column: int) -> str:
        """The name of a column: the set with its beta or objective."""
        return f"{self.set} {self.objective or f'β={self.betas[column]:.3f}'}"

    def lost_lines(self) -> list[str]:
        """A line for each member whose loss was not finite; one for all of an objective."""
        if self.objective is None:
            return [
                f"Lost: seed {seed}, beta {self.betas[column]:g}, from step {step} on."
                for seed, column, step in self.lost
            ]
        seeds = ", ".join(f"seed {seed} from step {step} on" for seed, _, step in self.lost)
        return [f"Lost: {self.objective}, {seeds}."] if seeds else []

    def grid(self, name: str) -> Tensor:
        """``sw1``, ``sw2`` or ``trace`` as (seeds, betas) float64."""
        return torch.tensor(getattr(self, name), dtype=torch.float64)

    def save(self, folder: Path) -> None:
        """Writes ``<key>.json``, by the program's key."""
        text = json.dumps(_finite(asdict(self)), allow_nan=False)
        write_whole(folder / f"{self.program.key}.json", text + "\n")

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
    """All finished programs in a folder by key, which is the set's name for one of all betas."""
    files = {program.key: folder / f"{program.key}.json" for program in PROGRAMS}
    return {key: Result.load(file) for key, file in files.items() if file.exists()}
