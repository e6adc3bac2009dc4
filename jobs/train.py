"""Train one experiment: ``python -m jobs.train digits --beta.value 0.5``; ``--resume FOLDER``."""

from dataclasses import dataclass, field, replace

from . import listing

if __name__ == "__main__":
    listing.answer("train")  # before the imports, which take seconds

from vamf import commands, presets, tracking, user_modules
from vamf.cluster.ray import connect
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.progress import progress_bar
from vamf.cluster.train.tracked_run import Launch, claimed, launch, new, resumed, scaling_of
from vamf.experiment import Experiment
from vamf.training.advice import advise
from vamf.training.loop import Summary
from vamf.training.warm_start.start import resolved

from . import cli
from .registering import register_best


@dataclass(frozen=True, kw_only=True)
class Resume(cli.Resume):
    """Continue a run from its latest checkpoint."""

    scaling: Scaling = field(default_factory=Scaling)
    """Processes, CPUs and GPUs; by default as before."""


def main(argv: list[str]) -> None:
    if cli.resumes(argv):
        saved = cli.guarded(lambda: scaling_of(cli.resumed_location(argv)))
        again = cli.read(Resume, argv, default=Resume(resume="", scaling=saved))
        cli.guarded(again.check)
        found = cli.guarded(lambda: resumed(again.location, again.uri))
        run(*found, again.scaling, again.register)
        return
    preset, options, experiment = read(argv)
    if options.dry_run:
        cli.show(experiment)
        return
    experiment = cli.guarded(lambda: resolved(experiment))
    start = cli.guarded(
        lambda: new(options.directory(user_modules.short(preset)), options.uri(), preset)
    )
    start = replace(start, numbered=options.name is None)
    run(experiment, start, options.scaling, options.register)


def read(argv: list[str]) -> tuple[str, cli.Options, Experiment]:
    """The preset's name, the options and the experiment of a new run."""

    def default(name: str) -> cli.Options:
        return cli.Options(experiment=presets.preset(name))

    preset, options = cli.parse("train", cli.Options, default, argv)
    return preset, options, cli.guarded(options.resolved)


def check(argv: list[str]) -> None:
    """Exits with an error if the options are invalid; opens none of the files they name."""
    if cli.resumes(argv):
        cli.guarded(cli.read(Resume, argv).check)
    else:
        read(argv)


def run(experiment: Experiment, start: Launch, scaling: Scaling, register: str | None) -> None:
    """Trains with a progress bar, and prints the metrics and where the run is."""
    cli.guarded(experiment.prepare)
    scaling = cli.guarded(lambda: connect.prepare(scaling, start.location.parent, start.uri))
    start = cli.guarded(lambda: claimed(start))
    advise(experiment)

    def train() -> Summary:
        with progress_bar(start.directory, experiment.steps, experiment.batch):
            return launch(experiment, start, scaling)

    summary = cli.guarded(train, resume=commands.shown("train", "--resume", start.location))
    for name, measurement in summary.metrics.items():
        print(f"{name:44} {measurement}")
    print(f"run        {start.location}")
    if register is not None:
        where = (start.directory, start.uri, register, start.location)
        print(f"model      {cli.guarded(lambda: register_best(*where))}")
    print(
        f"compare    {tracking.ui_command(start.uri, tracking.files_beside(start.location.parent))}"
    )


if __name__ == "__main__":
    cli.start(main)
