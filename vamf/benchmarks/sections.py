"""The command ``bench``: measures this machine by sections, or checks the precision of a step."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vamf import commands
from vamf.benchmarks import (
    evaluation_time,
    loop_delays,
    sharing,
    step_time,
    synthetic_inputs,
    whole_runs,
)
from vamf.benchmarks.step_time import Subject
from vamf.benchmarks.timing import Row, Table
from vamf.distributed import Workers
from vamf.errors import first_line
from vamf.experiment import Experiment
from vamf.inference.load import load_trainer
from vamf.training.step import precision_check
from vamf.training.step.precision import require
from vamf.training.step.precision_check import Deviation
from vamf.training.step.trainer import Trainer

Section = Literal[
    "step", "sampling", "evaluation", "start", "checkpoint", "data", "sharing", "scaling"
]

HEADINGS: dict[Section, str] = {
    "step": "a training step",
    "sampling": "sampling",
    "evaluation": "evaluation",
    "start": "start of a run",
    "checkpoint": "what the training loop waits for at a checkpoint",
    "data": "waiting for data",
    "sharing": "trainings at the same time on this device",
    "scaling": "workers under Ray Train, the same batch for each",
}

ASKED: Mapping[Section, str] = {"sharing": "trainings", "scaling": "workers"}
"""Sections that are measured if asked for, as they take minutes, and options that ask for them."""

Before = Mapping[str, Mapping[str, Row]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of one measurement of this machine."""

    only: tuple[Section, ...] = ()
    """Sections to measure; by default all but sharing and scaling."""
    trainings: tuple[int, ...] = ()
    """Numbers of trainings at the same time on this device to compare, such as `1 4`."""
    workers: tuple[int, ...] = ()
    """Numbers of workers to compare, such as `1 2`; each takes a minute."""
    batch: int | None = None
    """Samples in a step; by default the preset's."""
    repeats: int = 20
    """Rounds, over which medians are taken."""
    threads: int | None = None
    """CPU threads; by default torch's own choice."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to compute on."""
    compile: bool = False
    """Also time, or check, compiled steps if the preset is not compiled."""
    check: bool = False
    """Compare every precision with float64 on one step's draws, instead of timing."""
    checkpoint: Path | None = None
    """Checkpoint or run to check; by default the preset at its initial weights."""
    baseline: Path | None = None
    """JSON file of an earlier measurement to compare with."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or (self.batch is not None and self.batch < 1):
            raise ValueError(
                f"bench needs repeats and batch >= 1; got {self.repeats}, {self.batch}"
            )
        for name in ASKED.values():
            if any(n < 1 for n in getattr(self, name)):
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.check and (self.only or self.workers or self.trainings or self.baseline):
            raise ValueError(
                "--check measures no time: no --only, --workers, --trainings or --baseline with it"
            )
        if self.checkpoint and not self.check:
            raise ValueError(f"a checkpoint needs --check; got {self.checkpoint}")

    @property
    def sections(self) -> list[Section]:
        """The measured sections in the order of the output."""
        chosen = {*(self.only or {*HEADINGS} - {*ASKED})}
        chosen |= {section for section, option in ASKED.items() if getattr(self, option)}
        return [name for name in HEADINGS if name in chosen]

    def run(self, preset: str, experiment: Experiment) -> dict[str, Any]:
        """Measures, prints and returns the values; ValueError for what cannot be measured."""
        earlier, before = load(self.baseline) if self.baseline else ("", {})
        if self.threads:
            torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        compiled = self.compile or experiment.compute.compile
        experiment = experiment.override(
            {"batch": self.batch or experiment.batch, "compute.compile": compiled}
        )
        require(experiment.compute, device)
        here = f"{preset}, batch {experiment.batch}, {machine(device)}"
        print(here + (f"\nbefore: {earlier}" if earlier else ""), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            settings, notes = synthetic_inputs.replace_missing_data(
                experiment, Path(folder) / "data"
            )
            for note in notes:
                print(note, flush=True)
            experiment = experiment.override(settings)
            if self.check:
                if experiment.guidance:
                    print("without labels and guidance")
                found = self._checked(experiment, device, compiled)
                print(precision_check.format_deviations(found))
                return {name: deviation._asdict() for name, deviation in found.items()}
            tables = self._measured(preset, experiment, device, before)
        sections = {name: table.to_dict() for name, table in tables.items()}
        return {"what": here, "notes": notes, "sections": sections}

    def _checked(
        self, experiment: Experiment, device: torch.device, compiled: bool
    ) -> dict[str, Deviation]:
        """The deviations of all precisions, at initial weights or at the checkpoint's."""
        if self.checkpoint is None:
            trainer = Trainer(experiment, experiment.data.load("train"), Workers(device=device))
        else:
            trainer = load_trainer(self.checkpoint, device, {"batch": experiment.batch})
        return precision_check.check(trainer, compiled)

    def _measured(
        self, preset: str, experiment: Experiment, device: torch.device, before: Before
    ) -> dict[str, Table]:
        """The tables of all sections, each printed as soon as it is measured."""
        subject = Subject(experiment, device, self.repeats)
        threads, workers = torch.get_num_threads(), self.workers or (1, 2)
        trainings = self.trainings or (1, 4)
        measures: dict[Section, Callable[[], Table]] = {
            "step": lambda: step_time.steps(subject),
            "sampling": lambda: evaluation_time.sampling(subject),
            "evaluation": lambda: evaluation_time.evaluation(subject),
            "start": lambda: whole_runs.first_step(preset, subject),
            "checkpoint": lambda: loop_delays.stalls(subject),
            "data": lambda: loop_delays.waits(subject),
            "sharing": lambda: sharing.sharing(subject, trainings, threads),
            "scaling": lambda: whole_runs.scaling(preset, subject, workers, threads),
        }
        tables: dict[str, Table] = {}
        reason = ""
        for name in self.sections:
            try:
                tables[name] = measures[name]()
                text = tables[name].format(before.get(name, {}))
            except (ValueError, torch.OutOfMemoryError) as error:
                reason = f"not measured: {first_line(error)}"
                text = f"  {reason}"
            print(f"\n{HEADINGS[name]}\n{text}", flush=True)
        if not tables:
            raise ValueError(reason)
        return tables


def load(path: Path) -> tuple[str, Before]:
    """Title and values of an earlier measurement; ValueError if the file is not one."""
    try:
        found = json.loads(path.read_text())
        return str(found["what"]), {
            section: {name: Row(**row) for name, row in table["rows"].items()}
            for section, table in found["sections"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} must be a file that {commands.shown('bench')} wrote with --out"
        ) from None


def machine(device: torch.device) -> str:
    """Device, threads and version of torch, for the output."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
