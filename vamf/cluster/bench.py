"""What ``jobs.bench`` does: measures this machine, section by section, or checks a step."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vamf.cluster import bench_runs
from vamf.experiment import Experiment
from vamf.training import bench_evaluation, bench_loop, bench_steps, numerics, stand_ins
from vamf.training.bench_steps import Subject
from vamf.training.benchmark import Row, Table
from vamf.training.precision import require

Section = Literal["step", "sampling", "evaluation", "start", "checkpoint", "data", "scaling"]

HEADINGS: dict[Section, str] = {
    "step": "a training step",
    "sampling": "sampling",
    "evaluation": "evaluation",
    "start": "start of a run",
    "checkpoint": "what the training loop waits for at a checkpoint",
    "data": "waiting for data",
    "scaling": "workers under Ray Train, the same batch for each",
}

Before = Mapping[str, Mapping[str, Row]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One measurement of this machine."""

    only: tuple[Section, ...] = ()
    """What to measure; by default all but scaling."""
    workers: tuple[int, ...] = ()
    """Numbers of workers whose runs are compared, such as `1 2`: a minute for each."""
    batch: int | None = None
    """Samples in a step; by default the preset's."""
    repeats: int = 20
    """Rounds; medians are shown."""
    threads: int | None = None
    """CPU threads; by default torch's own choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""
    compile: bool = False
    """Time, or check, compiled steps too, also of a preset that is not compiled."""
    check: bool = False
    """Compare every precision with float64 instead, on one step's draws."""
    checkpoint: Path | None = None
    """Checkpoint or run to check; by default the preset at its initial weights."""
    baseline: Path | None = None
    """JSON file of an earlier measurement, to set beside."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or (self.batch is not None and self.batch < 1):
            raise ValueError(
                f"bench needs repeats and batch >= 1; got {self.repeats}, {self.batch}"
            )
        if any(n < 1 for n in self.workers):
            raise ValueError(f"workers must be at least 1; got {self.workers}")
        if self.check and (self.only or self.workers or self.baseline):
            raise ValueError("--check measures no time: no --only, --workers or --baseline with it")
        if self.checkpoint and not self.check:
            raise ValueError(f"a checkpoint goes with --check; got {self.checkpoint}")

    @property
    def sections(self) -> list[Section]:
        """What is measured, in the order of the table."""
        chosen = {*(self.only or {*HEADINGS} - {"scaling"})}
        return [name for name in HEADINGS if name in chosen or (name == "scaling" and self.workers)]

    def run(self, preset: str, experiment: Experiment) -> dict[str, Any]:
        """Measures, prints and returns the figures; ValueError for what cannot be measured."""
        then, before = load(self.baseline) if self.baseline else ("", {})
        if self.threads:
            torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        compiled = self.compile or experiment.compute.compile
        experiment = experiment.override(
            {"batch": self.batch or experiment.batch, "compute.compile": compiled}
        )
        require(experiment.compute, device)
        here = f"{preset}, batch {experiment.batch}, {machine(device)}"
        print(here + (f"\nbefore: {then}" if then else ""), flush=True)
        with tempfile.TemporaryDirectory() as place:
            settings, notes = stand_ins.data_at_hand(experiment, Path(place) / "data")
            for note in notes:
                print(note, flush=True)
            experiment = experiment.override(settings)
            if self.check:
                if experiment.guidance:
                    print("without labels and guidance")
                found = numerics.check(experiment, self.checkpoint, device, compiled)
                print(numerics.told(found))
                return {name: deviation._asdict() for name, deviation in found.items()}
            tables = self._measured(preset, experiment, device, before)
        sections = {name: table.to_dict() for name, table in tables.items()}
        return {"what": here, "notes": notes, "sections": sections}

    def _measured(
        self, preset: str, experiment: Experiment, device: torch.device, before: Before
    ) -> dict[str, Table]:
        """All sections, each printed as soon as it is known."""
        subject = Subject(experiment, device, self.repeats)
        threads, workers = torch.get_num_threads(), self.workers or (1, 2)
        measures: dict[Section, Callable[[], Table]] = {
            "step": lambda: bench_steps.steps(subject),
            "sampling": lambda: bench_evaluation.sampling(subject),
            "evaluation": lambda: bench_evaluation.evaluation(subject),
            "start": lambda: bench_runs.first_step(preset, subject),
            "checkpoint": lambda: bench_loop.stalls(subject),
            "data": lambda: bench_loop.waits(subject),
            "scaling": lambda: bench_runs.scaling(preset, subject, workers, threads),
        }
        tables: dict[str, Table] = {}
        reason = ""
        for name in self.sections:
            try:
                tables[name] = measures[name]()
                told = tables[name].told(before.get(name, {}))
            except (ValueError, torch.OutOfMemoryError) as error:
                reason = f"not measured: {str(error).splitlines()[0]}"
                told = f"  {reason}"
            print(f"\n{HEADINGS[name]}\n{told}", flush=True)
        if not tables:
            raise ValueError(reason)
        return tables


def load(path: Path) -> tuple[str, Before]:
    """What an earlier measurement was of, and its figures; ValueError if the file holds none."""
    try:
        found = json.loads(path.read_text())
        return str(found["what"]), {
            section: {name: Row(**row) for name, row in table["rows"].items()}
            for section, table in found["sections"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} must be a file that jobs.bench wrote with --out") from None


def machine(device: torch.device) -> str:
    """What computes, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
