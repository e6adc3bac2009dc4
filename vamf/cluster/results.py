"""What a search found: the table of trials, the Pareto front, its plot and the best samples."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume

from vamf.cluster.trials import Trial, load_trials, trial_folder
from vamf.cluster.tune import Sweep, open_study
from vamf.tracking import Tracker, ui_command

BASELINE = "β=0.000"
"""The label of MeanFlow itself, with which every other trial is compared."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A finished, or interrupted, search."""

    objectives: tuple[str, ...]
    trials: list[Trial]
    """All that ended, by number; failed ones have an ``error``."""
    front: frozenset[int]
    """Numbers of the trials that no other beats in every objective."""
    hypervolume: float
    """What the front dominates, up to ``reference``."""
    reference: tuple[float, ...]
    """A tenth beyond the worst value of each objective: compare hypervolumes of one sweep only."""

    @property
    def complete(self) -> list[Trial]:
        """Trials with figures."""
        return [trial for trial in self.trials if trial.error is None]

    @property
    def best(self) -> Trial | None:
        """The trial of the front with the smallest last objective, the distance."""
        on_front = [trial for trial in self.complete if trial.number in self.front]
        last = self.objectives[-1]
        return min(on_front, key=lambda trial: trial.metrics[last].value, default=None)


def gather(sweep: Sweep) -> Results:
    """Reads a sweep's study and its trials' records."""
    study, trials = open_study(sweep), load_trials(sweep.directory)
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    values = np.array([trial.values for trial in done], dtype=float)
    reference = values.max(0) * 1.1 if len(values) else np.zeros(len(sweep.objectives))
    return Results(
        objectives=sweep.objectives,
        trials=trials,
        front=frozenset(trial.number for trial in study.best_trials),
        hypervolume=float(compute_hypervolume(values, reference)) if len(values) else 0.0,
        reference=tuple(float(value) for value in reference),
    )


def table(results: Results) -> str:
    """The trials in Markdown, ordered by the distance; the front is starred."""
    names = [name.removeprefix("eval/") for name in results.objectives]
    compare = any(len(trial.seeds) > 1 for trial in results.complete)
    header = ["", "trial", "beta", *names, *(["against β=0"] if compare else []), "seconds"]
    last = results.objectives[-1]
    rows = [
        [
            "*" if trial.number in results.front else "",
            str(trial.number),
            trial.label,
            *(str(trial.metrics[name]) for name in results.objectives),
            *([verdict(results, trial)] if compare else []),
            f"{trial.seconds:.0f}",
        ]
        for trial in sorted(results.complete, key=lambda trial: trial.metrics[last].value)
    ]
    failed = [
        ["", str(trial.number), trial.label, f"failed: {trial.error}"]
        for trial in results.trials
        if trial.error
    ]
    return _markdown([header, *rows, *(row + [""] * (len(header) - len(row)) for row in failed)])


def verdict(results: Results, trial: Trial) -> str:
    """Whether the distance differs from that of beta = 0: a paired t-test over seeds at 95 %."""
    from scipy.stats import ttest_rel

    name = results.objectives[-1]
    base = next((other for other in results.complete if other.label == BASELINE), None)
    if base is None or base.number == trial.number or len(base.seeds) != len(trial.seeds):
        return "-"
    pairs = [(a[name], b[name]) for a, b in zip(trial.seeds, base.seeds, strict=True)]
    ours, theirs = np.array(pairs).T
    if not ttest_rel(ours, theirs).pvalue < 0.05:
        return "indistinguishable"
    return "better" if ours.mean() < theirs.mean() else "worse"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def plot(results: Results, path: Path) -> None:
    """Draws the first objective against the last, with standard errors, and the front."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    x, y = results.objectives[0], results.objectives[-1]
    for trial in results.complete:
        on_front = trial.number in results.front
        (a, da), (b, db) = trial.metrics[x], trial.metrics[y]
        colour = "tab:red" if on_front else "tab:gray"
        axes.errorbar(a, b, yerr=db, xerr=da, fmt="o", color=colour, capsize=2, lw=1)
        axes.annotate(trial.label, (a, b), xytext=(5, 5), textcoords="offset points", fontsize=8)
    front = sorted(
        (t.metrics[x].value, t.metrics[y].value)
        for t in results.complete
        if t.number in results.front
    )
    if front:
        axes.step(
            *zip(*front, strict=True), where="post", color="tab:red", lw=1, label="Pareto front"
        )
        axes.legend()
    if results.complete and max(t.metrics[x].value for t in results.complete) > 10 * min(
        t.metrics[x].value for t in results.complete
    ):
        axes.set_xscale("log")
    axes.set_xlabel(x.removeprefix("eval/"))
    axes.set_ylabel(y.removeprefix("eval/"))
    figure.savefig(path, dpi=120)


def publish(sweep: Sweep, results: Results) -> dict[str, Path]:
    """Writes table, plot and the best trial's samples into the sweep's folder, and to MLflow."""
    files = {"table": sweep.directory / "trials.md", "front": sweep.directory / "pareto.png"}
    files["table"].write_text(table(results) + "\n")
    plot(results, files["front"])
    tracker = Tracker(sweep.parent)
    if results.best is not None:
        files["samples"] = sweep.directory / "best_samples.png"
        shutil.copyfile(_samples(sweep, results.best), files["samples"])
        best = results.best.metrics
        tracker.metrics({name: best[name].value for name in results.objectives}, step=0)
        tracker.tags({"best": f"trial {results.best.number}, {results.best.label}"})
    tracker.metrics({"search/hypervolume": results.hypervolume}, step=len(results.complete))
    for path in files.values():
        tracker.artifact(path)
    tracker.flush()
    return files


def report(sweep: Sweep, results: Results, files: Mapping[str, Path]) -> str:
    """What a search prints at its end."""
    lines = [table(results), "", f"* Pareto front; hypervolume {results.hypervolume:.4g}"]
    if sweep.seeds == 1:
        lines.append("± is the error of one evaluation; --seeds 2 or more tells the luck of a seed")
    best = results.best
    lines += [
        f"front      {files['front']}",
        f"samples    {files.get('samples')} (trial {best.number}, {best.label})" if best else "",
        f"study      {sweep.storage}",
        f"compare    {ui_command(sweep.parent.uri, sweep.directory.parent)}",
    ]
    return "\n".join(lines)


def _samples(sweep: Sweep, trial: Trial) -> Path:
    folder = trial_folder(sweep.directory, trial.number) / f"seed_{sweep.experiment.seed}"
    return max((folder / "samples").glob("step_*.png"))
