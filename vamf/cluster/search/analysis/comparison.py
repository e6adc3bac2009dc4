"""Compares any runs and searches: a row for each configuration, over its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from vamf import commands, markdown
from vamf.cluster.search.analysis.configurations import (
    differing,
    labels,
    other_protocol,
    value_text,
)
from vamf.cluster.search.analysis.ended_runs import EndedRun, ended_runs
from vamf.cluster.search.analysis.significance import UNKNOWN, paired_verdicts
from vamf.cluster.search.trials import over_seeds
from vamf.metrics import significance
from vamf.store import StoragePath
from vamf.training.evaluation import Metrics
from vamf.training.evaluation_log import Evaluated

if TYPE_CHECKING:
    import pandas

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A configuration: runs that differ in their seeds only."""

    label: str
    """The settings that differ between the rows, with this row's values."""
    runs: tuple[EndedRun, ...]
    """Its runs, by seed."""
    metrics: Metrics
    """Means over seeds with standard errors; of one seed, the evaluation's own errors."""
    verdict: str
    """How its distance compares with the baseline's."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.experiment.seed for run in self.runs)

    @property
    def seconds(self) -> float:
        """Mean wall-clock seconds of a run."""
        return mean(run.summary.seconds for run in self.runs)

    @property
    def step_ms(self) -> float | None:
        """Mean milliseconds of a training step, without evaluations; None if a run kept none."""
        last = self._last()
        return mean(1e3 * one.seconds / one.step for one in last) if last else None

    @property
    def gib(self) -> float | None:
        """The largest peak of a run's GPU memory, in GiB; None if one is not known."""
        last = self._last()
        known = [one.gib for one in last if one.gib is not None]
        return max(known, default=None) if len(known) == len(last) else None

    def _last(self) -> list[Evaluated]:
        """The last evaluation of each run; none if a run kept none."""
        last = [run.evaluations[-1:] for run in self.runs]
        return [one for (one,) in last] if all(last) else []


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Configurations with their metrics; the first one is the baseline."""

    rows: tuple[Row, ...]
    """In the order in which they were given."""
    names: tuple[str, ...]
    """The metrics that all runs have, ``eval/...``."""
    distance: str
    """The metric that the verdicts are about."""
    left_out: tuple[StoragePath, ...] = ()
    """Places of runs that have configuration and seed of an earlier one."""

    @property
    def judged(self) -> bool:
        """Whether any row could be compared with the baseline."""
        return any(row.verdict != UNKNOWN for row in self.rows[1:])

    def table(self) -> str:
        """The rows in Markdown."""
        names = [name.removeprefix("eval/") for name in self.names]
        costs = self._costs()
        header = ["configuration", "seeds", *names, "seconds", *costs]
        cells = [
            [
                row.label,
                ", ".join(map(str, row.seeds)),
                *(str(row.metrics[name]) for name in self.names),
                f"{row.seconds:.0f}",
                *(found[index] for found in costs.values()),
                *([row.verdict] if self.judged else []),
            ]
            for index, row in enumerate(self.rows)
        ]
        return markdown.table([*header, *(["verdict"] if self.judged else [])], cells)

    def _costs(self) -> dict[str, list[str]]:
        """What a step takes in each row, as far as all rows know it, by name."""
        known = {
            "ms a step": [row.step_ms for row in self.rows],
            "peak GiB": [row.gib for row in self.rows],
        }
        texts = {name: [f"{v:.1f}" for v in vs if v is not None] for name, vs in known.items()}
        return {name: found for name, found in texts.items() if len(found) == len(self.rows)}

    def notes(self) -> list[str]:
        """What a reader of the table must know, a line each."""
        lines = [
            f"left out   {f}: the same configuration and seed as another" for f in self.left_out
        ]
        if any(len(row.runs) == 1 for row in self.rows):
            lines.append(
                "± of a single seed is the error of one evaluation, not that of a training"
            )
        if any(row.verdict == significance.LOST for row in self.rows):
            lines.append("lost: a distance, of the row or of the first one, is not finite")
        distance = self.distance.removeprefix("eval/")
        if len(self.rows) == 1:
            lines.append("no verdict: all runs have the same configuration")
        elif self.judged:
            lines.append(
                f"verdict: {distance} against the first row, by a t-test that pairs the seeds both "
                f"have; {UNKNOWN}: fewer than two. Of the better and worse ones "
                f"{significance.RATE:.0%} are expected to be luck"
            )
        else:
            lines.append(
                "no verdict: a row needs two seeds in common with the first; add runs with another "
                f"--seed, or search with {commands.shown('tune', '--seeds', 2)} or more"
            )
        return lines

    def to_pandas(self) -> "pandas.DataFrame":
        """A row a configuration: label, seeds, each metric and its error, seconds and verdict."""
        import pandas

        return pandas.DataFrame([self._row(row) for row in self.rows])

    def _row(self, row: Row) -> dict[str, Any]:
        measured: dict[str, float] = {}
        for name in self.names:
            value, error = row.metrics[name]
            measured |= {name: value, f"{name} ±": error}
        known = {"configuration": row.label, "seeds": row.seeds}
        return known | measured | {"seconds": row.seconds, "verdict": row.verdict}

    def __str__(self) -> str:
        """The table, and what a reader must know."""
        return "\n".join([self.table(), "", *self.notes()])


def compare(folders: Sequence[str | Path], *, best: bool = False) -> Comparison:
    """Compares runs and searches, at least two runs in all, with the configuration of the first.

    Of a search all complete trials count, or only the ``best`` one. Runs that differ in their seed
    are one row. Verdicts are about the distance: the t-test of `vamf.metrics.significance`, paired
    by the seeds that a row and the first one share, as equal seeds share noise and data.

    They are named by their folders, or by their addresses in an object store.

    Raises ValueError for a place without a run or search, for a run that has not ended, and if
    data or evaluation differ.
    """
    runs = [run for folder in folders for run in ended_runs(folder, best=best)]
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, or a search; got {len(runs)}")
    _require_one_protocol(runs)
    names = tuple(n for n in runs[0].summary.metrics if _common(n, runs))
    groups, left_out = _grouped(runs)
    distance = _distance(runs[0])
    rows = zip(
        _labels(groups, alone=len(folders) == 1),
        groups,
        [BASELINE, *_verdicts(groups, distance)],
        strict=True,
    )
    return Comparison(
        rows=tuple(
            Row(label=label, runs=tuple(group), metrics=_over_seeds(group, names), verdict=verdict)
            for label, group, verdict in rows
        ),
        names=names,
        distance=distance,
        left_out=tuple(left_out),
    )


def _labels(groups: Sequence[Sequence[EndedRun]], *, alone: bool) -> list[str]:
    """The names of a search's trials if it is ``alone`` and they differ, or else the settings."""
    named = [group[0].label for group in groups]
    if alone and all(named) and len(set(named)) == len(named):
        return named
    return labels([group[0].experiment for group in groups])


def _distance(run: EndedRun) -> str:
    return f"eval/{run.experiment.evaluation.distance.key}"


def _common(name: str, runs: Sequence[EndedRun]) -> bool:
    return name.startswith("eval/") and all(name in run.summary.metrics for run in runs)


def _require_one_protocol(runs: Sequence[EndedRun]) -> None:
    """Raises ValueError that names what differs, and the two runs."""
    first = runs[0]
    for run in runs[1:]:
        if pairs := other_protocol(first.experiment, run.experiment):
            what = ", ".join(
                f"{name} {value_text(one)} and {value_text(other)}"
                for name, (one, other) in pairs.items()
            )
            raise ValueError(
                "runs must share data and evaluation to be compared; "
                f"got {what} of {first.place} and {run.place}"
            )
    for run in runs:
        if (name := _distance(first)) not in run.summary.metrics:
            raise ValueError(f"{run.place} must have measured {name}, as its experiment says")


def _grouped(runs: Sequence[EndedRun]) -> tuple[list[list[EndedRun]], list[StoragePath]]:
    """The runs of each configuration by seed, and the places of runs that are there already."""
    groups: list[list[EndedRun]] = []
    left_out: list[StoragePath] = []
    for run in runs:
        group = next((g for g in groups if not differing(g[0].experiment, run.experiment)), None)
        if group is None:
            groups.append([run])
        elif any(run.experiment.seed == other.experiment.seed for other in group):
            left_out.append(run.place)
        else:
            group.append(run)
    return [sorted(group, key=lambda run: run.experiment.seed) for group in groups], left_out


def _over_seeds(group: Sequence[EndedRun], names: Sequence[str]) -> Metrics:
    return over_seeds([{name: run.summary.metrics[name] for name in names} for run in group])


def _verdicts(groups: Sequence[Sequence[EndedRun]], name: str) -> list[str]:
    """The verdict on each group but the first."""
    return paired_verdicts(
        [{r.experiment.seed: r.summary.metrics[name].value for r in g} for g in groups]
    )
