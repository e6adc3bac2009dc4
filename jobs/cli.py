"""Command lines of the jobs, made from the same values that the library takes."""

import argparse
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import uuid4

import tyro

import tune_spaces
from jobs import reading
from vamf import output, tracking, values
from vamf.cluster import signals
from vamf.cluster.failures import RunFailed
from vamf.cluster.scaling import Scaling
from vamf.cluster.sweeps import NothingFound
from vamf.experiment import Experiment
from vamf.files import expanded, home
from vamf.presets import PRESETS
from vamf.redact import redacted
from vamf.store import Place, Store, place
from vamf.training.trainer import NonFiniteLoss

T = TypeVar("T")

Flat = Annotated[tyro.conf.AvoidSubcommands[Experiment], tyro.conf.arg(name="")]
"""An experiment whose fields are options without a prefix: ``--optim.lr``."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every job that trains."""

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
    dry_run: bool = False
    """Print the resolved experiment and stop."""

    def resolved(self) -> Experiment:
        """The experiment with every option applied, and absolute paths; ValueError names what is
        wrong."""
        experiment = changed(self.experiment, self.set).located()
        self.scaling.check(experiment)
        return experiment

    def uri(self) -> str:
        """Where MLflow keeps the runs; ValueError if it does not answer."""
        uri = tracking.address(files(place(self.storage)), self.tracking)
        tracking.check(uri)
        return uri

    def directory(self, prefix: str) -> Place:
        """Where the run is to be kept; ValueError if the user named one that exists."""
        storage = place(self.storage)
        if self.name is None:
            return storage / made_up(prefix, storage)
        if (directory := storage / self.name).exists():
            raise ValueError(f"{directory} exists; choose another --name, or --resume it")
        return directory

    def folder(self, prefix: str) -> Path:
        """The same, of what cannot be kept in a store; ValueError if it would be."""
        folder(place(self.storage))
        return folder(self.directory(prefix))


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with what a folder holds, from where it ended."""

    resume: str
    """The run's, or the search's, folder, or its place in an object store."""
    tracking: str | None = None
    """MLflow's tracking URI; by default MLFLOW_TRACKING_URI, or else where it was, without the
    credentials of an address."""

    @property
    def place(self) -> Place:
        """Where it is kept; ValueError for an address of no use."""
        return place(self.resume)

    @property
    def uri(self) -> str:
        """Where MLflow keeps the runs."""
        place = self.place
        before = None if isinstance(place, Store) else tracking.address_of(place)
        return tracking.address(files(place.parent), self.tracking, before)


def files(storage: Place) -> Path:
    """The folder for MLflow's files if no server keeps them: a database cannot be in a store."""
    return Path("runs").resolve() if isinstance(storage, Store) else storage


def made_up(prefix: str, storage: Place) -> str:
    """A name made from the time; in a store, where none is numbered, one that nobody else makes."""
    name = f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
    return f"{name}-{uuid4().hex[:6]}" if isinstance(storage, Store) else name


def folder(where: Place) -> Path:
    """What must be a folder; ValueError if it is a store."""
    if isinstance(where, Store):
        raise ValueError(
            f"the storage must be a folder of a file system that all nodes mount; got {where}"
        )
    return where


def shown(checkpoint: Path) -> str:
    """A path, or an address without its credentials."""
    return str(Store.of(str(checkpoint)) or checkpoint)


def search_spaces() -> dict[str, Any]:
    """The modules in ``tune_spaces``, by name."""
    names = [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]
    return {name: importlib.import_module(f"tune_spaces.{name}") for name in names}


def varied(argv: Sequence[str], space: str) -> tuple[list[str], str | None]:
    """`[SPACE [PRESET]] [options]` as `SPACE [options]`, by default ``space``, and the preset.

    Exits with one line for an unknown preset.
    """
    space, *rest = argv if argv and not argv[0].startswith("--") else (space, *argv)
    if not rest or rest[0].startswith("-"):
        return [space, *rest], None
    preset, *options = rest
    guarded(lambda: one_of(preset, PRESETS, "preset"))
    return [space, *options], preset


def resumes(argv: Sequence[str]) -> bool:
    """Whether the command goes on with something, rather than beginning anew."""
    return any(argument.split("=")[0] == "--resume" for argument in argv)


def resumed_place(argv: Sequence[str]) -> Place:
    """What follows ``--resume``; ValueError for an address of no use."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?")
    return place(parser.parse_known_args(argv)[0].resume or "")


def changed(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """The experiment with settings `name=value`, where a path may begin with ``~``.

    Raises ValueError that names what is wrong.
    """
    changes = dict(item.partition("=")[::2] for item in settings)
    changed = experiment.override({name: _literal(value) for name, value in changes.items()})
    return values.with_paths(changed, expanded)


def one_of(name: str, known: Mapping[str, T], what: str) -> T:
    """The value of that name; ValueError with the nearest known name."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}{values.nearest(name, known)}")
    return known[name]


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse(
    options: type[T], defaults: Mapping[str, T], argv: Sequence[str], what: str
) -> tuple[str, T]:
    """Reads `NAME [options]`, NAME one of ``defaults``; exits with one line for an unknown one."""
    name = argv[0] if argv else "--help"
    if name in defaults:
        program = f"{Path(sys.argv[0]).stem} {name}"
        default = defaults[name]
        return name, read(options, argv[1:], program, default)
    if name not in ("-h", "--help"):
        guarded(lambda: one_of(name, defaults, what))
    print(f"usage: NAME [options]; NAME --help lists the options of the {what} NAME:")
    print("\n".join(f"  {known}" for known in defaults))
    raise SystemExit(0)


def start(main: Callable[[list[str]], None]) -> None:
    """Runs a job as a program, whatever becomes of what it prints."""
    output.forgive()
    guarded(home)
    main(sys.argv[1:])


def read(
    options: type[T], argv: Sequence[str], prog: str | None = None, default: T | None = None
) -> T:
    """The options that a command line gives; exits with what is wrong with them."""
    return guarded(lambda: reading.read(options, argv, prog, default))


def guarded(action: Callable[[], T], resume: str | None = None) -> T:
    """Runs ``action``; bad input, a run that fails, and Ctrl-C end the program with one line.

    So does a signal that asks for its end. ``resume`` is the command that goes on afterwards.
    """
    try:
        signals.heed()
        return action()
    except ValueError as error:
        stop(str(error))
    except (NonFiniteLoss, NothingFound, RunFailed) as error:
        stop(str(error), status=1)
    except OSError as error:
        if error.filename is None or error.strerror is None:  # no file's, but a fault
            raise
        stop(f"cannot use {error.filename}: {error.strerror}", status=1)
    except KeyboardInterrupt as error:
        asked = signals.cause(error)
        told, status = (f"ended by {asked}", asked.status) if asked else ("interrupted", 130)
        stop(f"{told}; to go on: {resume}" if resume else told, status)


def show(experiment: Experiment) -> None:
    """Prints a resolved experiment as JSON."""
    print(json.dumps(experiment.to_dict(), indent=2))


def figure(name: str, value: object) -> None:
    """Prints one figure."""
    print(f"{name:44} {value}")


def stop(line: str, status: int = 2) -> NoReturn:
    """Ends the program with one line on stderr."""
    print(f"error: {redacted(line)}", file=sys.stderr)
    raise SystemExit(status)
