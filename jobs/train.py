"""Train one experiment: ``python -m jobs.train digits --beta.value 0.5``; ``--resume FOLDER``."""

from dataclasses import dataclass, field, replace

from jobs import cli
from vamf import tracking
from vamf.cluster import connect
from vamf.cluster.bars import progress_bar
from vamf.cluster.launch import Launch, claimed, launch, new, resumed, scaling_of
from vamf.cluster.scaling import Scaling
from vamf.experiment import Experiment
from vamf.presets import PRESETS
from vamf.training.loop import Summary


@dataclass(frozen=True, kw_only=True)
class Resume(cli.Resume):
    """Continue a run from its latest checkpoint."""

    scaling: Scaling = field(default_factory=Scaling)
    """Processes, CPUs and GPUs; what is not given here is as it was."""


def main(argv: list[str]) -> None:
    if cli.resumes(argv):
        saved = cli.guarded(lambda: scaling_of(cli.resumed_place(argv)))
        again = cli.read(Resume, argv, default=Resume(resume="", scaling=saved))
        run(*cli.guarded(lambda: resumed(again.place, again.uri)), again.scaling)
        return
    preset, options, experiment = read(argv)
    if options.dry_run:
        cli.show(experiment)
        return
    start = cli.guarded(lambda: new(options.directory(preset), options.uri(), preset))
    run(experiment, replace(start, numbered=options.name is None), options.scaling)


def read(argv: list[str]) -> tuple[str, cli.Options, Experiment]:
    """The preset's name, the options and the experiment of a new run."""
    presets = {name: cli.Options(experiment=value) for name, value in PRESETS.items()}
    preset, options = cli.parse(cli.Options, presets, argv, "preset")
    return preset, options, cli.guarded(options.resolved)


def check(argv: list[str]) -> None:
    """Exits with what is wrong with the options, and looks for nothing that they name."""
    if cli.resumes(argv):
        cli.read(Resume, argv)
    else:
        read(argv)


def run(experiment: Experiment, start: Launch, scaling: Scaling) -> None:
    """Trains, with a progress bar, and prints what was measured and where it is."""
    cli.guarded(experiment.prepare)
    scaling = cli.guarded(lambda: connect.prepare(scaling, start.place.parent, start.uri))
    start = cli.guarded(lambda: claimed(start))

    def train() -> Summary:
        with progress_bar(start.directory, experiment.steps):
            return launch(experiment, start, scaling)

    summary = cli.guarded(train, resume=f"python -m jobs.train --resume {start.place}")
    for name, measurement in summary.metrics.items():
        print(f"{name:44} {measurement}")
    print(f"run        {start.place}")
    print(f"compare    {tracking.ui_command(start.uri, cli.files(start.place.parent))}")


if __name__ == "__main__":
    cli.start(main)
