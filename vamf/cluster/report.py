"""Telling what a search found: files, MLflow, and the terminal."""

from collections.abc import Mapping
from pathlib import Path

from vamf.cluster.plots import plot
from vamf.cluster.results import Results, table
from vamf.cluster.sweep import Sweep
from vamf.cluster.trials import Trial, trial_folder
from vamf.files import write_whole
from vamf.tracking import Tracker, ui_command


def publish(sweep: Sweep, results: Results) -> dict[str, Path]:
    """Writes table, plot and the best trial's samples into the sweep's folder, and to MLflow."""
    files = {"table": sweep.directory / "trials.md", "front": sweep.directory / "pareto.png"}
    write_whole(files["table"], table(results) + "\n")
    plot(results, files["front"])
    tracker = Tracker(sweep.parent)
    if results.best is not None:
        files["samples"] = sweep.directory / "best_samples.png"
        write_whole(files["samples"], _samples(sweep, results.best).read_bytes())
        best = results.best.metrics
        tracker.metrics({name: best[name].value for name in results.objectives}, step=0)
        tracker.tags({"best": f"trial {results.best.number}, {results.best.label}"})
    tracker.metrics({"search/hypervolume": results.hypervolume}, step=len(results.complete))
    if results.smooth is not None:
        tracker.metrics({"search/best_beta": results.smooth.best}, step=len(results.complete))
    if (saved := results.savings) is not None:
        figures = {"search/steps_saved": saved.steps, "search/seconds_saved": saved.seconds}
        tracker.metrics(figures, step=len(results.complete))
        tracker.tags({"halving": str(saved)})
    for path in files.values():
        tracker.artifact(path)
    tracker.flush()
    return files


def report(sweep: Sweep, results: Results, files: Mapping[str, Path]) -> str:
    """What a search prints at its end."""
    lines = [table(results), "", f"* Pareto front; hypervolume {results.hypervolume:.4g}"]
    if sweep.seeds == 1:
        lines.append("± is the error of one evaluation; --seeds 2 or more tells the luck of a seed")
    if results.savings is not None:
        lines.append(f"halving    {results.savings}")
    if (fit := results.smooth) is not None:
        name = results.objectives[-1].removeprefix("eval/")
        low, high = fit.interval
        lines.append(
            f"best beta  {fit.best:.2f}, 95 % [{low:.2f}, {high:.2f}], "
            f"{name} {fit.curves[-1].mean.min():.3g}: by a Gaussian process over beta"
        )
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
