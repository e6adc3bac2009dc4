"""The settings of a reproduction (arXiv 2605.09235, supplement: toys and DGMM)."""

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from vamf import commands
from vamf.data.mixtures import Mixture
from vamf.data.toys import TOYS, Toy
from vamf.experiment import Experiment
from vamf.experiment_settings import Evaluation, Optimiser
from vamf.files import write_whole
from vamf.flow.schedules import BetaSchedule
from vamf.flow.times import UniformTimes
from vamf.metrics.distances import SlicedWasserstein
from vamf.models.mlp import MLPConfig
from vamf.reproduction.objectives import BASELINE, OBJECTIVES, changes, file_name
from vamf.serialization import nearest

DIMENSIONS = (2, 4, 8, 16, 32, 64)

SETS: dict[str, Toy | Mixture] = {
    **{name: Toy(name=name) for name in TOYS},
    **{f"dgmm_{d}": Mixture(name="dgmm", dim=d) for d in DIMENSIONS},
    **{f"dgmm_{d}_redrawn": Mixture(name="dgmm", dim=d, centres="redrawn") for d in DIMENSIONS},
}
"""Data sets by name; the paper uses the redrawn mixtures."""

PROTOCOL = "protocol.json"
ALL = "all"


class Program(NamedTuple):
    """What is trained as one program: a set at all betas, or a set by one objective."""

    set: str
    objective: str | None = None

    def __str__(self) -> str:
        return self.set if self.objective is None else f"{self.set}, {self.objective}"

    @property
    def key(self) -> str:
        """The name of its files, without the ending."""
        return self.set if self.objective is None else f"{self.set}.{file_name(self.objective)}"


PROGRAMS = [Program(name, which) for name in SETS for which in (None, *OBJECTIVES)]
"""All programs, set by set."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The settings of one reproduction; ``check`` validates them."""

    sets: tuple[str, ...] = tuple(SETS)
    """Data sets by name."""
    betas: tuple[float, ...] = tuple(k / 10 for k in range(11))
    """Weights of the proxy in the tangent, in [0, 1], including 0."""
    objectives: tuple[str, ...] = ()
    """Objectives by name, each with its own beta, in place of the betas; `all` for all of them."""
    seeds: tuple[int, ...] = (42, 0, 1)
    """Seeds of the weights and of all draws, at least two."""
    steps: int = 200_000
    """Training steps."""
    setting: Literal["faithful", "sound"] = "faithful"
    """`faithful` trains gaps t - r up to .5 and samples with gap 1, as the paper does; `sound`
    trains all gaps."""
    trace_every: int = 2000
    """Steps between measurements of the gradient's covariance."""
    distance: SlicedWasserstein = field(default_factory=SlicedWasserstein)
    """The distance of generated points to real ones."""
    evaluation_seed: int = 2020
    """Seed of the points, noise and directions of the evaluation, the same for all members."""

    def check(self) -> None:
        """Raises ValueError for settings that cannot be run."""
        for name in self.sets:
            if name not in SETS:
                raise ValueError(f"unknown set {name!r}{nearest(name, SETS)}")
        for beta in self.betas:
            BetaSchedule(value=beta)
        self._check_objectives()
        if 0 not in self.betas:
            raise ValueError(f"betas must contain 0, to compare with; got {list(self.betas)}")
        if len(self.seeds) < 2:
            raise ValueError(
                f"seeds must be at least 2, for standard errors; got {list(self.seeds)}"
            )
        for what, values in (("sets", self.sets), ("betas", self.betas), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{what} must be given, each once; got {list(values)}")
        if self.steps < 2 or self.trace_every < 1:
            raise ValueError(
                "steps must be at least 2 and trace_every at least 1; "
                f"got {self.steps} and {self.trace_every}"
            )

    def _check_objectives(self) -> None:
        for name in (chosen := self.chosen):
            if name not in OBJECTIVES:
                raise ValueError(f"unknown objective {name!r}{nearest(name, OBJECTIVES)}")
        if chosen and BASELINE not in chosen:
            raise ValueError(
                f"objectives must contain {BASELINE}, to compare with; got {', '.join(chosen)}"
            )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"objectives must be given each once; got {', '.join(chosen)}")
        if chosen and self.betas != Protocol().betas:
            raise ValueError(
                f"objectives have their own beta: betas must not be given; got {list(self.betas)}"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the objectives; none if betas are compared."""
        return tuple(OBJECTIVES) if self.objectives == (ALL,) else self.objectives

    @property
    def programs(self) -> list[Program]:
        """What is trained, set by set."""
        return [Program(name, which) for name in self.sets for which in self.chosen or (None,)]

    def betas_of(self, program: Program) -> tuple[float, ...]:
        """The betas of a program's members."""
        if program.objective is None:
            return self.betas
        return (OBJECTIVES[program.objective]["beta.value"],)

    @property
    def interval(self) -> int:
        """Steps between traces; at most half of the steps, so that the second half has one."""
        return min(self.trace_every, self.steps // 2)

    def experiment(self, name: str, objective: str | None = None) -> Experiment:
        """The experiment on a set; the ensemble replaces its beta and seed."""
        experiment = Experiment(
            data=SETS[name],
            model=MLPConfig(hidden=(128, 128, 128), embedding=32),
            times=UniformTimes(
                prob_equal=0.25, max_gap=0.5 if self.setting == "faithful" else 1.0, margin=1e-4
            ),
            proxy="ema",
            optim=Optimiser(lr=1e-3, final=0.01),
            ema=0.999,
            batch=256,
            steps=self.steps,
            evaluation=Evaluation(distance=self.distance, seed=self.evaluation_seed),
        )
        return experiment.override(changes(experiment, objective)) if objective else experiment

    @property
    def command(self) -> str:
        """The command that runs this reproduction."""
        mine, usual = self._options(), Protocol()._options()
        given = [f"--{name} {text}" for name, text in mine.items() if text != usual[name]]
        return commands.shown("reproduce", *given)

    def _options(self) -> dict[str, str]:
        distance = {f"distance.{name}": value for name, value in asdict(self.distance).items()}
        fields = {k: v for k, v in asdict(self).items() if k != "distance"} | distance
        return {name.replace("_", "-"): _argument(value) for name, value in fields.items()}

    def common(self) -> dict[str, object]:
        """All settings but sets and objectives; processes that share a folder must agree on them.

        All compare betas, or all compare objectives.
        """
        fields = json.loads(json.dumps(asdict(self)))
        del fields["sets"], fields["objectives"]
        return fields | ({"betas": "those of objectives"} if self.objectives else {})


def _argument(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{v:g}" if isinstance(v, float) else shlex.quote(str(v)) for v in values)


def claim(folder: Path, protocol: Protocol) -> None:
    """Creates the folder of a reproduction, or joins it; ValueError if it holds another one."""
    file, mine = folder / PROTOCOL, protocol.common()
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(f"{folder} holds something else; choose another name")
        write_whole(file, json.dumps(mine, indent=2) + "\n")
    there = json.loads(file.read_text())
    differ = [f"{k} {there.get(k)} there, {v} here" for k, v in mine.items() if there.get(k) != v]
    if differ:
        raise ValueError(f"{folder} holds another reproduction: {'; '.join(differ)}")
