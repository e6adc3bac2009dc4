"""Command lines of the jobs, from the dataclasses of the library."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar
from uuid import uuid4

import tyro

from vamf import output, presets, serialization, signals, tracking
from vamf.cluster.ray.scaling import Scaling
from vamf.errors import NonFiniteLoss, NothingFound, RunFailed
from vamf.experiment import Experiment
from vamf.files import expanded, home
from vamf.redact import redacted
from vamf.store import StoragePath, Store, storage_path
from vamf.tracking.registry import check_name

from . import config_file, listing, reading

T = TypeVar("T")

Flat = Annotated[tyro.conf.AvoidSubcommands[Experiment], tyro.conf.arg(name="")]
"""An experiment whose fields are options without a prefix: ``--optim.lr``."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every job that trains."""

    resume: str | None = None
    """Continue what this folder holds; without a name before it, and with few other options: see
    `--resume FOLDER --help`."""
    config: Path | None = None
    """JSON or YAML file of settings, nested or by dotted name, such as what --dry-run prints: they
    are applied over the preset, and all options here over them."""
    experiment: Flat
    set: tuple[str, ...] = ()
    """More settings, as `name=value`: those absent above, such as `loss.anchor.weight=0.1`, or
    another kind, such as `times.kind=UniformTimes`."""
    scaling: Scaling = field(default_factory=Scaling)
    """Processes, CPUs and GPUs."""
    storage: str = "runs"
    """Folder for runs, on a cluster one that all nodes see; or an object store, s3://BUCKET/RUNS."""
    tracking: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, which is where one with a password
    belongs, as others see command lines, or else a file in the storage."""
    name: str | None = None
    """Name of the run's folder in the storage; by default made from preset and time."""
    register: str | None = None
    """The name under which MLflow registers the best checkpoint at the end, of a search that of the
    best trial; the new version gets the alias `best`."""
    dry_run: bool = False
    """Print the resolved experiment and stop."""

    def resolved(self) -> Experiment:
        """The experiment with all options applied and absolute paths; ValueError for wrong ones."""
        if self.register is not None:
            check_name(self.register)
        experiment = changed(self.experiment, self.set).located()
        self.scaling.check(experiment)
        return experiment

    def uri(self) -> str:
        """MLflow's tracking address; ValueError if it does not answer."""
        uri = tracking.address(tracking.files_beside(storage_path(self.storage)), self.tracking)
        tracking.check(uri)
        return uri

    def directory(self, prefix: str) -> StoragePath:
        """The new run's folder or location; ValueError if the user named one that exists."""
        storage = storage_path(self.storage)
        if self.name is None:
            return storage / default_name(prefix, storage)
        if (directory := storage / self.name).exists():
            raise ValueError(f"{directory} exists; choose another --name, or --resume it")
        return directory


Training = TypeVar("Training", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Resume what a folder holds."""

    resume: str
    """The folder of the run or search, or its address in an object store."""
    tracking: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or else the former one, without the
    credentials of an address."""
    register: str | None = None
    """The name under which MLflow registers the best checkpoint at the end."""

    def check(self) -> None:
        """Raises ValueError for options that cannot be honoured, before anything is opened."""
        if self.register is not None:
            check_name(self.register)

    @property
    def location(self) -> StoragePath:
        """The folder or location of the run or search; ValueError for an invalid address."""
        return storage_path(self.resume)

    @property
    def uri(self) -> str:
        """MLflow's tracking address."""
        location = self.location
        before = None if isinstance(location, Store) else tracking.address_of(location)
        return tracking.address(tracking.files_beside(location.parent), self.tracking, before)


def default_name(prefix: str, storage: StoragePath) -> str:
    """A name made from the time; in a store, where names are not numbered, a unique one."""
    name = f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
    return f"{name}-{uuid4().hex[:6]}" if isinstance(storage, Store) else name


def folder(location: StoragePath) -> Path:
    """A location as a folder; ValueError if it is a store."""
    if isinstance(location, Store):
        raise ValueError(
            f"the storage must be a folder of a file system that all nodes mount; got {location}"
        )
    return location


def shown(checkpoint: Path) -> str:
    """A path, or an address without its credentials, for printing."""
    return str(Store.of(str(checkpoint)) or checkpoint)


def varied(argv: Sequence[str], space: str) -> tuple[list[str], str | None]:
    """`[SPACE [PRESET]] [options]` as `SPACE [options]`, by default ``space``, and the preset.

    Exits with one line for an unknown preset.
    """
    if listing.asked("tune", [*argv]):
        return [*argv], None
    space, *rest = argv if argv and not argv[0].startswith("--") else (space, *argv)
    if not rest or rest[0].startswith("-"):
        return [space, *rest], None
    preset, *options = rest
    guarded(lambda: presets.preset(preset))
    return [space, *options], preset


def resumes(argv: Sequence[str]) -> bool:
    """Whether the command resumes something rather than starting anew.

    Exits with one line if it names something besides.
    """
    resumed = any(argument.split("=")[0] == "--resume" for argument in argv)
    if resumed and not argv[0].startswith("-"):
        stop(f"--resume FOLDER must stand without a name before it; got {argv[0]!r}")
    return resumed


def resumed_location(argv: Sequence[str]) -> StoragePath:
    """The location after ``--resume``; ValueError for an invalid address."""
    return storage_path(value_of("--resume", argv) or "")


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of an option that must be known before all options are read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, nargs="?", dest="value")
    return parser.parse_known_args(argv)[0].value


def configured(options: Training, argv: Sequence[str]) -> Training:
    """Options by default, with the settings of the file after ``--config``.

    Raises ValueError that names the file, if it cannot be read or a setting is wrong.
    """
    path = value_of("--config", argv)
    if path is None:
        return options
    return replace(options, experiment=config_file.applied(options.experiment, Path(path)))


def changed(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """The experiment with settings `name=value`, where a path may begin with ``~``.

    Raises ValueError that names the wrong setting.
    """
    changes = dict(item.partition("=")[::2] for item in settings)
    changed = experiment.override({name: reading.literal(value) for name, value in changes.items()})
    return serialization.with_paths(changed, expanded)


def parse(
    program: str,
    options: type[Training],
    default: Callable[[str], Training],
    argv: Sequence[str],
) -> tuple[str, Training]:
    """Reads `NAME [options]`, with the options' defaults by name; prints the names as its help.

    Exits with one line for a name without a default, or a file of settings that cannot be used.
    """
    name, *rest = argv or ["--help"]
    if name in listing.HELP:
        print(listing.names(program))
        raise SystemExit(0)
    found = guarded(lambda: configured(default(name), rest))
    return name, read(options, rest, f"{program} {name}", found)


def start(main: Callable[[list[str]], None]) -> None:
    """Runs a job as a program; errors in printing do not end it."""
    output.ignore_write_errors()
    guarded(home)
    main(sys.argv[1:])


def read(
    options: type[T], argv: Sequence[str], prog: str | None = None, default: T | None = None
) -> T:
    """The options of a command line; exits with an error if they are invalid."""
    return guarded(lambda: reading.read(options, argv, prog, default))


def guarded(action: Callable[[], T], resume: str | None = None) -> T:
    """Runs ``action``; bad input, a run that fails, and Ctrl-C end the program with one line.

    So does a signal that ends programs. ``resume`` is the command that resumes it afterwards.
    """
    try:
        signals.handle_signals()
        return action()
    except ValueError as error:
        stop(str(error))
    except (NonFiniteLoss, NothingFound, RunFailed) as error:
        stop(str(error), status=1)
    except OSError as error:
        if error.filename is None or error.strerror is None:  # not about a file: a bug
            raise
        stop(f"cannot use {error.filename}: {error.strerror}", status=1)
    except KeyboardInterrupt as error:
        end = signals.cause(error)
        line, status = (f"ended by {end}", end.status) if end else ("interrupted", 130)
        stop(f"{line}; to resume: {resume}" if resume else line, status)


def show(experiment: Experiment) -> None:
    """Prints a resolved experiment as JSON."""
    print(json.dumps(experiment.to_dict(), indent=2))


def print_metric(name: str, value: object) -> None:
    """Prints a metric."""
    print(f"{name:44} {value}")


def stop(line: str, status: int = 2) -> NoReturn:
    """Ends the program with one line on stderr."""
    print(f"error: {redacted(line)}", file=sys.stderr)
    raise SystemExit(status)
