"""Search beta: ``python -m jobs.tune``, ``python -m jobs.tune schedules mnist --trials 30``."""

from dataclasses import dataclass, field

from jobs import cli
from vamf.cluster import sweeps
from vamf.cluster.halving import Halving
from vamf.cluster.report import report
from vamf.cluster.sweep import Sweep
from vamf.experiment import Experiment
from vamf.presets import PRESETS

SPACES = cli.search_spaces()


@dataclass(frozen=True, kw_only=True)
class Resume(cli.Resume):
    """Go on with a search: trials that were in flight go on from their checkpoints."""

    retry_failed: bool = False
    """Try the points of failed trials anew, too."""


@dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """Options of a search."""

    trials: int = 6
    """Points to try; beta = 0 and beta = 1 are the first."""
    seeds: int = 1
    """Trainings for each point; from two on, differences are tested against beta = 0."""
    halving: Halving = field(default_factory=Halving)
    """Which trials end early."""


def main(argv: list[str]) -> None:
    if cli.resumes(argv):
        again = cli.read(Resume, argv)
        sweep = cli.guarded(lambda: sweeps.resumed(cli.folder(again.place), again.uri))
        run(sweep, failed=again.retry_failed)
    elif (fresh := new(argv)) is not None:
        run(fresh)


def read(argv: list[str]) -> tuple[sweeps.Plan, Options, Experiment]:
    """What a new search is to do, the options and the experiment."""
    argv, preset = cli.varied(argv, "constant")
    defaults = {n: Options(experiment=PRESETS[preset or s.PRESET]) for n, s in SPACES.items()}
    name, options = cli.parse(Options, defaults, argv, "search space")
    plan = sweeps.Plan(SPACES[name], name, options.trials, options.seeds, options.halving, preset)
    experiment = cli.guarded(options.resolved)
    cli.guarded(lambda: sweeps.check(plan, experiment))
    return plan, options, experiment


def check(argv: list[str]) -> None:
    """Exits with what is wrong with the options, and looks for nothing that they name."""
    if cli.resumes(argv):
        cli.read(Resume, argv)
    else:
        read(argv)


def new(argv: list[str]) -> Sweep | None:
    """A new search; None if its experiment was only to be shown."""
    plan, options, experiment = read(argv)
    if options.dry_run:
        cli.show(experiment)
        return None
    where = cli.guarded(lambda: (options.folder(f"beta-{plan.name}"), options.uri()))
    return cli.guarded(
        lambda: sweeps.new(plan, experiment, *where, options.scaling, numbered=options.name is None)
    )


def run(sweep: Sweep, *, failed: bool = False) -> None:
    """Searches, and prints what was found and where it is."""
    print(sweep.announcement, flush=True)
    space = SPACES[sweep.space]
    found = cli.guarded(lambda: sweeps.run(space, sweep, failed=failed), sweep.again)
    print(report(sweep, *found))


if __name__ == "__main__":
    cli.start(main)
