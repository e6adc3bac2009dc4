"""Search beta: ``python -m jobs.tune``, ``python -m jobs.tune schedules --trials 30 --seeds 2``."""

import importlib
import json
import pkgutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

import tune_spaces
from jobs import cli
from vamf import tracking
from vamf.cluster import connect, results, sweeps
from vamf.cluster.tune import Sweep
from vamf.experiment import Experiment
from vamf.presets import PRESETS

SPACES = {
    module.name: importlib.import_module(f"tune_spaces.{module.name}")
    for module in pkgutil.iter_modules(tune_spaces.__path__)
}


@dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """Options of a search."""

    trials: int = 6
    """Points to try; beta = 0 and beta = 1 are the first."""
    seeds: int = 1
    """Trainings for each point; from two on, differences are tested against beta = 0."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue a search: trials that ended are kept, those in flight are repeated."""

    resume: Path
    """The search's folder."""
    tracking: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or else the file beside the search."""


def main(argv: list[str]) -> None:
    if any(argument.split("=")[0] == "--resume" for argument in argv):
        sweep = cli.guarded(lambda: resumed(tyro.cli(Resume, args=argv)))
    else:
        argv = argv if argv and not argv[0].startswith("--") else ["constant", *argv]
        defaults = {n: Options(experiment=PRESETS[s.PRESET]) for n, s in SPACES.items()}
        name, options = cli.parse(Options, defaults, argv, "search space")
        experiment = cli.guarded(options.resolved)
        cli.guarded(lambda: sweeps.check(SPACES[name], experiment, options.trials, options.seeds))
        if options.dry_run:
            print(json.dumps(experiment.to_dict(), indent=2))
            return
        sweep = cli.guarded(lambda: new(name, experiment, options))
    print(
        f"searching {sweep.space} beta: {sweep.trials} trials of {sweep.seeds} x "
        f"{sweep.experiment.steps} steps, in {sweep.directory}",
        flush=True,
    )
    found = cli.guarded(lambda: sweeps.run(SPACES[sweep.space], sweep))
    print(results.report(sweep, *found))


def new(name: str, experiment: Experiment, options: Options) -> Sweep:
    """A new search; what it needs is looked for before Ray starts, and Ray before it is tracked."""
    directory, uri = options.directory(f"beta-{name}"), options.uri()
    return sweeps.new(
        SPACES[name],
        name,
        experiment,
        directory=directory,
        uri=uri,
        trials=options.trials,
        seeds=options.seeds,
        scaling=connect.prepare(options.scaling, cluster=True),
    )


def resumed(again: Resume) -> Sweep:
    """An earlier search, on the cluster that is there now."""
    uri = again.tracking or tracking.default_uri(again.resume.resolve().parent)
    sweep = sweeps.resumed(again.resume, uri)
    return replace(sweep, scaling=connect.prepare(sweep.scaling, cluster=True))


if __name__ == "__main__":
    main(sys.argv[1:])
