"""Writes a search's results to files, to MLflow and to the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vamf.cluster.search.analysis.configurations import leaf
from vamf.cluster.search.analysis.importances import lines as importance_lines
from vamf.cluster.search.analysis.mlflow_view import describe, show
from vamf.cluster.search.analysis.plots import plot, plot_slices
from vamf.cluster.search.analysis.results import Results, table
from vamf.cluster.search.search_config import Sweep
from vamf.cluster.search.trials import Trial, trial_folder
from vamf.files import write_whole
from vamf.redact import redacted
from vamf.run_layout import (
    BEST_SAMPLES,
    FRONT,
    SAMPLES,
    SLICES,
    STEPS,
    TABLE,
    seed_name,
    trial_name,
)
from vamf.store import StoragePath, names, read
from vamf.tracking import Tracker, files_beside, ui_command, view_path


def publish(sweep: Sweep, results: Results) -> dict[str, Path]:
    """Writes table, plot and the best trial's samples into the sweep's folder, and to MLflow."""
    files = {"table": sweep.directory / TABLE, "front": sweep.directory / FRONT}
    write_whole(files["table"], table(results) + "\n")
    plot(results, files["front"])
    if results.slices is not None:
        files["slices"] = sweep.directory / SLICES
        plot_slices(results, results.slices, files["slices"])
    tracker = Tracker(sweep.parent)
    if results.best is not None:
        files["samples"] = sweep.directory / BEST_SAMPLES
        write_whole(files["samples"], _samples(sweep, results.best))
        tracker.tags({"best": "; ".join(_best(results))})
    spent = {f"search/{name}": value for name, value in results.spent._asdict().items()}
    found = {"search/hypervolume": results.hypervolume, **spent}
    tracker.metrics(found, step=len(results.complete))
    if results.smooth is not None:
        tracker.metrics({"search/best_beta": results.smooth.best}, step=len(results.complete))
    if (saved := results.savings) is not None:
        metrics = {"search/steps_saved": saved.steps, "search/seconds_saved": saved.seconds}
        tracker.metrics(metrics, step=len(results.complete))
        tracker.tags({"halving": str(saved)})
    for name, shares in results.importances.items():
        tracker.tags({f"explained.{name}": ", ".join(f"{p} {s:.0%}" for p, s in shares.items())})
    for path in files.values():
        tracker.artifact(path)
    show(sweep)
    describe(sweep, results, verdict(sweep, results))
    tracker.flush()
    return files


def _best(results: Results) -> list[str]:
    """The best beta of the fitted curve, if there is one, and the best trial."""
    fit, best = results.smooth, results.best
    name = results.objectives[-1].removeprefix("eval/")
    curve = [] if fit is None else [f"beta {fit.best:.3g} by the fitted curve"]
    trial = [] if best is None else [f"lowest {name} in trial {best.number}, {best.label}"]
    return curve + trial


def report(sweep: Sweep, results: Results, files: Mapping[str, Path]) -> str:
    """The text that a search prints at its end."""
    best, page = results.best, view_path(sweep.parent)
    return "\n".join(
        [
            table(results),
            "",
            *verdict(sweep, results),
            f"front      {files['front']}",
            *([f"slices     {files['slices']}"] if "slices" in files else []),
            f"samples    {files.get('samples')} (trial {best.number}, {best.label})"
            if best
            else "",
            f"study      {redacted(sweep.storage)}",
            *([f"search     {sweep.store}"] if sweep.store is not None else []),
            f"compare    {ui_command(sweep.parent.uri, files_beside(sweep.location.parent), page)}",
        ]
    )


def verdict(sweep: Sweep, results: Results) -> list[str]:
    """Lines on what was found."""
    lines = [f"* Pareto front; hypervolume {results.hypervolume:.4g}"]
    if sweep.seeds == 1:
        lines.append("± is the error of one evaluation; --seeds 2 or more tells the luck of a seed")
    seconds, gpu_seconds = results.spent
    on_gpus = f", {gpu_seconds:.0f} GPU-seconds" if gpu_seconds else ""
    lines.append(f"time       {len(results.trials)} trials, {seconds:.0f} s{on_gpus}")
    if results.savings is not None:
        lines.append(f"halving    {results.savings}")
    if (fit := results.smooth) is not None:
        name = results.objectives[-1].removeprefix("eval/")
        low, high = fit.interval
        lines.append(
            f"best beta  {fit.best:.2f}, 95 % [{low:.2f}, {high:.2f}], "
            f"{name} {fit.curves[-1].mean.min():.3g}: by a Gaussian process over beta"
        )
    if (cut := results.slices) is not None:
        distance_name = results.objectives[-1].removeprefix("eval/")
        best = " ".join(f"{leaf(name)}={_shown(value)}" for name, value in cut.best.items())
        distance, low, high = cut.distance
        lines.append(
            f"best point {best}, {distance_name} {distance:.3g}, 95 % [{low:.3g}, {high:.3g}]: "
            f"by a Gaussian process over {len(cut.best)} parameters"
        )
    return lines + [f"explained  {line}" for line in importance_lines(results.importances)]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def seed_folder(sweep: Sweep, trial: Trial) -> Path:
    """The folder of the run of a trial's first seed."""
    return trial_folder(sweep.directory, trial.number) / seed_name(sweep.experiment.seed)


def seed_location(sweep: Sweep, trial: Trial) -> StoragePath:
    """The folder of the run of a trial's first seed, or its location in a store."""
    if sweep.store is None:
        return seed_folder(sweep, trial)
    return sweep.store / trial_name(trial.number) / seed_name(sweep.experiment.seed)


def _samples(sweep: Sweep, trial: Trial) -> bytes:
    run = seed_location(sweep, trial)
    return read(run, max(names(run, f"{SAMPLES}/{STEPS}.png")))
