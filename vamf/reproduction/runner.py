"""Trains and measures the programs of a reproduction; an interrupted command can be continued."""

import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vamf.files import write_whole
from vamf.reproduction.ensemble.draw_blocks import BLOCK
from vamf.reproduction.ensemble.ensemble import Ensemble, train_together
from vamf.reproduction.measure import measure
from vamf.reproduction.protocol import SETS, Program, Protocol
from vamf.reproduction.results import Result

SAVE_S = 120.0
"""Seconds between saved states."""


class Work:
    """The training of one program: its ensemble, the traces so far, the file of its state."""

    def __init__(
        self, protocol: Protocol, program: Program, folder: Path, device: torch.device
    ) -> None:
        self.protocol, self.program, self.folder = protocol, program, folder
        experiment, betas = protocol.experiment(*program), protocol.betas_of(program)
        self.ensemble = Ensemble(experiment, betas, protocol.seeds, device)
        self.traces: list[Tensor] = []
        self.seconds = 0.0
        if self.file.exists():
            self._load()

    @property
    def file(self) -> Path:
        """The file of an unfinished program's state."""
        return self.folder / f"{self.program.key}.pt"

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self.ensemble.step

    @property
    def due(self) -> int:
        """Steps until the next measurement or the end, at most two blocks."""
        ahead = self.protocol.interval - self.step % self.protocol.interval
        return min(ahead, self.protocol.steps - self.step, 2 * BLOCK)

    def measure_trace(self) -> None:
        """Measures the gradient's covariance if the interval has passed."""
        if self.step % self.protocol.interval == 0:
            self.traces.append(self.ensemble.gradient_trace())

    def save(self) -> None:
        """Writes the state atomically."""
        state = self.ensemble.state_dict()
        traces = torch.stack([trace.cpu() for trace in self.traces]) if self.traces else None
        whole = {"ensemble": state, "traces": traces, "seconds": self.seconds}
        write_whole(self.file, lambda file: torch.save(whole, file))

    def _load(self) -> None:
        try:
            state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
            self.ensemble.load_state_dict(state["ensemble"])
        except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.file} must be a saved ensemble; {error}") from None
        self.traces = [] if state["traces"] is None else list(state["traces"])
        self.seconds = state["seconds"]

    def finish(self, together: int) -> Result:
        """Measures the points, writes the result, and deletes the state."""
        protocol, ensemble = self.protocol, self.ensemble
        ensemble.wait()
        distances, floor = measure(ensemble, protocol, self.program.set)
        repetitions = len(distances)
        traces = torch.stack([trace.cpu() for trace in self.traces])
        steps = [protocol.interval * (k + 1) for k in range(len(traces))]
        late = traces[[step >= protocol.steps / 2 for step in steps]].mean(0)
        error = distances.std(0).square().nanmean((1, 2)).sqrt() / repetitions**0.5
        sw1, sw2 = distances.mean(0).tolist()
        result = Result(
            set=self.program.set,
            objective=self.program.objective,
            betas=list(ensemble.betas),
            seeds=list(protocol.seeds),
            sw1=sw1,
            sw2=sw2,
            repetition_error=error.tolist(),
            trace=late.tolist(),
            traces=traces.tolist(),
            trace_steps=steps,
            floor=torch.stack([floor.mean(0), floor.std(0) / repetitions**0.5], 1).tolist(),
            lost=[
                [protocol.seeds[i], j, int(ensemble.lost[i, j])]
                for i, j in (ensemble.lost >= 0).nonzero().tolist()
            ],
            seconds=self.seconds,
            together=together,
            device=device_name(ensemble.device),
            torch=torch.__version__,
            experiment=ensemble.experiment.to_dict(),
            command=protocol.command,
        )
        result.save(self.folder)
        self.file.unlink(missing_ok=True)
        return result


def device_name(device: torch.device) -> str:
    """The device's name, for the results."""
    if device.type == "cuda":
        exact = torch.get_float32_matmul_precision() == "highest"
        return torch.cuda.get_device_name(device) + ("" if exact else ", TF32")
    return f"CPU, {torch.get_num_threads()} threads"


@dataclass(frozen=True, kw_only=True)
class Computing:
    """The device of a reproduction, its precision and time limit."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to compute on."""
    together: int = len(SETS) if torch.cuda.is_available() else 1
    """Sets, or objectives of sets, trained at the same time; on a GPU their work overlaps."""
    tf32: bool = False
    """Allow matrix products in TensorFloat-32 on a GPU."""
    minutes: float | None = None
    """Stop after this many minutes; the same command with the same --name continues exactly."""

    def prepare(self) -> None:
        """Sets the precision of matrix products; ValueError for impossible settings."""
        if self.together < 1 or (self.minutes is not None and not self.minutes > 0):
            raise ValueError(
                "together must be at least 1 and minutes positive; "
                f"got {self.together} and {self.minutes}"
            )
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device must exist; got {self.device}")
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")


def unfinished(protocol: Protocol, folder: Path) -> list[Program]:
    """The programs without a result."""
    return [p for p in protocol.programs if not (folder / f"{p.key}.json").exists()]


def run(
    protocol: Protocol, folder: Path, computing: Computing, report: Callable[[str], None] = print
) -> Iterator[Result]:
    """Trains what is unfinished and yields the results, until all is finished or time is up."""
    minutes, device = computing.minutes, torch.device(computing.device)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    waiting = unfinished(protocol, folder)
    for first in range(0, len(waiting), computing.together):
        if first and time.monotonic() >= deadline:
            return
        programs = waiting[first : first + computing.together]
        group = [Work(protocol, program, folder, device) for program in programs]
        if not train(group, deadline, report):
            return
        for work in group:
            yield work.finish(len(group))


def train(group: Sequence[Work], deadline: float, report: Callable[[str], None]) -> bool:
    """Trains a group to the end, saving every ``SAVE_S``; False if the deadline came first."""
    saved = time.monotonic()
    while pending := [work for work in group if work.step < work.protocol.steps]:
        _advance(pending)
        now = time.monotonic()
        if now >= deadline or now - saved >= SAVE_S:
            _save(group, report)
            saved = time.monotonic()
        if now >= deadline and any(work.step < work.protocol.steps for work in group):
            return False
    _save(group, report)
    return True


def _advance(pending: Sequence[Work]) -> None:
    """Trains the programs with the fewest steps up to their next measurement, together."""
    start, step = time.monotonic(), min(work.step for work in pending)
    behind = [work for work in pending if work.step == step]
    train_together([work.ensemble for work in behind], behind[0].due)
    for work in behind:
        work.measure_trace()
    for work in behind:
        work.seconds += time.monotonic() - start


def _save(group: Sequence[Work], report: Callable[[str], None]) -> None:
    for work in group:
        work.save()
    left = max(work.protocol.steps - work.step for work in group)
    names = "; ".join(str(work.program) for work in group)
    report(f"{names}: {f'{left} steps left' if left else 'trained'}")
