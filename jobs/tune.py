"""Search beta: ``python -m jobs.tune``, ``python -m jobs.tune schedules mnist --trials 30``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from . import listing

if __name__ == "__main__":
    listing.answer("tune")  # before the imports, which take seconds

import tyro

from vamf import presets, user_modules
from vamf.cluster.search import search_runner, study_database
from vamf.cluster.search.analysis.report import report, seed_folder, seed_location
from vamf.cluster.search.budget import Budget
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.halving import Halving
from vamf.cluster.search.search_config import Sweep
from vamf.experiment import Experiment

from . import cli, named
from .registering import register_best


@dataclass(frozen=True, kw_only=True)
class Resume(cli.Resume):
    """Resume or extend a search: trials that were running are resumed from their checkpoints."""

    extension: Annotated[Extension, tyro.conf.arg(name="")] = field(default_factory=Extension)
    """More trials, more seeds, another budget."""
    study: str | None = None
    """The address of the study's database, with its password, if it is not a file; by default
    VAMF_STUDY, or else the former one."""
    join: bool = False
    """Work on the search together with other commands that work on it now, each on the trials that
    it starts."""
    retry_failed: bool = False
    """Also try the points of failed trials again."""


@dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """Options of a search."""

    trials: int | None = None
    """Points to try, the space's own first, such as beta = 0 and beta = 1; by default 6, or with
    hours or GPU-hours as many as they allow."""
    seeds: int | Literal["auto"] = 1
    """Trainings for each point; from two on, differences from the first point are tested. auto: 2,
    and then 4 and 8 for points on and next to the front whose verdict is open."""
    budget: Annotated[Budget, tyro.conf.arg(name="")] = field(default_factory=Budget)
    """When the search stops starting trials."""
    halving: Halving = field(default_factory=Halving)
    """Which trials end early."""
    study: str | None = None
    """The address of a database for the study, postgresql://USER@HOST/NAME or mysql://..., which
    optuna-dashboard can show from anywhere; by default VAMF_STUDY, which is where one with a
    password belongs, or else a file in the search's folder."""


def main(argv: list[str]) -> None:
    if cli.resumes(argv):
        again = cli.read(Resume, argv)
        cli.guarded(again.check)
        sweep = cli.guarded(
            lambda: search_runner.resumed(
                again.location,
                again.uri,
                again.extension,
                again.study,
                join=again.join,
            )
        )
        run(sweep, again.register, failed=again.retry_failed, join=again.join)
        return
    plan, options, experiment = read(argv)
    if options.dry_run:
        cli.show(experiment)
        return
    run(new(plan, options, experiment), options.register)


def read(argv: list[str]) -> tuple[search_runner.Plan, Options, Experiment]:
    """The plan of a new search, the options and the experiment."""
    argv, preset = cli.varied(argv, "constant")

    def default(name: str) -> Options:
        return Options(experiment=presets.preset(preset or named.space(name).PRESET))

    name, options = cli.parse("tune", Options, default, argv)
    plan = search_runner.Plan(
        space=named.space(name),
        name=name,
        trials=options.trials,
        seeds=options.seeds,
        halving=options.halving,
        budget=options.budget,
        preset=preset,
    )
    experiment = cli.guarded(options.resolved)
    cli.guarded(lambda: search_runner.check(plan, experiment))
    return plan, options, experiment


def check(argv: list[str]) -> None:
    """Exits with an error if the options are invalid; opens none of the files they name."""
    if cli.resumes(argv):
        cli.guarded(cli.read(Resume, argv).check)
    else:
        read(argv)


def new(plan: search_runner.Plan, options: Options, experiment: Experiment) -> Sweep:
    """A new search, with its folder and its MLflow run."""
    locations = cli.guarded(
        lambda: (options.directory(f"beta-{user_modules.short(plan.name)}"), options.uri())
    )
    return cli.guarded(
        lambda: search_runner.new(
            plan,
            experiment,
            *locations,
            options.scaling,
            numbered=options.name is None,
            study=study_database.address(options.study),
        )
    )


def run(sweep: Sweep, register: str | None, *, failed: bool = False, join: bool = False) -> None:
    """Searches, and prints the results and where they are, unless others still work on them."""
    print(sweep.announcement, flush=True)
    space = cli.guarded(lambda: named.space(sweep.space))
    found, files = cli.guarded(
        lambda: search_runner.run(space, sweep, failed=failed, join=join), sweep.resume_command
    )
    if not files:
        return
    print(report(sweep, found, files))
    if register is not None and found.best is not None:
        folder = seed_folder(sweep, found.best)
        where = (folder, sweep.parent.uri, register, seed_location(sweep, found.best))
        print(f"model      {cli.guarded(lambda: register_best(*where))}")


if __name__ == "__main__":
    cli.start(main)
