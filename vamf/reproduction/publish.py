"""Publishes a reproduction in MLflow: a parent run, a child for each (set, beta or objective)."""

from pathlib import Path

from vamf import tracking
from vamf.file_lock import locked
from vamf.files import claimed, write_whole
from vamf.output import say
from vamf.reproduction import objective_tables, runner
from vamf.reproduction.protocol import Protocol, claim
from vamf.reproduction.results import Result, load_all
from vamf.reproduction.runner import Computing
from vamf.reproduction.tables import document, over_seeds, ratio, verdicts
from vamf.run_layout import LOCK, RUN, SPOOL
from vamf.serialization import flatten
from vamf.tracking import Run, Tracker
from vamf.tracking.run_end import closing
from vamf.training.evaluation import Metrics

TABLE = "reproduction.md"


def reproduce(
    protocol: Protocol, computing: Computing, folder: Path, uri: str, *, numbered: bool = False
) -> None:
    """Trains what is unfinished, publishes each when it is finished, and prints the progress.

    With ``numbered`` a new folder is created, with a number appended if the name exists. Raises
    ValueError if MLflow does not answer at the start; later this only prints a line.
    """
    tracking.check(uri)
    folder = claimed(folder, numbered=True) if numbered else folder
    claim(folder, protocol)
    run = parent(protocol, folder, uri)
    with closing(run):
        _publish(folder, run)
        for result in runner.run(protocol, folder, computing):
            say(f"{result.program} is finished after {result.seconds:.0f} s")
            for line in result.lost_lines():
                say(line)
            _publish(folder, run)
    if left := runner.unfinished(protocol, folder):
        what = "objectives of sets" if protocol.objectives else "sets"
        Tracker(run).close("KILLED", f"paused with {len(left)} {what} left")
        say(f"{len(left)} {what} are left; the same command with --name {folder.name} continues")
    say(f"table      {folder / TABLE}")
    say(f"compare    {tracking.ui_command(uri, folder.parent)}")


def _publish(folder: Path, run: Run) -> None:
    try:
        publish(folder, run)
    except ValueError as error:
        say(f"not published: {error}")


def parent(protocol: Protocol, folder: Path, uri: str) -> Run:
    """The run of a reproduction: the first process creates it, the others join it.

    Raises ValueError if MLflow does not answer.
    """
    marker = folder / RUN
    with locked(folder / f".{RUN}{LOCK}", wait=True):
        if marker.exists():
            run = Run.load(marker, uri)
            tracking.rejoin(run)
            return run
        run = tracking.create(
            uri,
            name=folder.name,
            params=protocol.common(),
            tags={
                "directory": str(folder),
                "command": protocol.command,
            },
            spool=folder / SPOOL,
        )
        run.save(marker)
    return run


def publish(folder: Path, parent: Run) -> None:
    """Sends everything finished that was not sent yet, and the table.

    Raises ValueError if MLflow does not answer; another call continues with the next one.
    """
    finished = load_all(folder)
    for name, result in finished.items():
        sent = folder / f".{name}.sent"
        with locked(folder / f".{name}{LOCK}", wait=True):
            if not sent.exists():
                publish_cells(result, parent, folder)
                sent.touch()
    if finished:
        tracker = Tracker(parent)
        tracker.artifact(render(folder))
        tracker.flush()


def publish_cells(result: Result, parent: Run, folder: Path) -> None:
    """Creates a finished child run for each beta of a set, or one for an objective."""
    for column, beta in enumerate(result.betas):
        run = tracking.create(
            parent.uri,
            name=result.label(column),
            params=parameters(result, beta),
            tags={"set": result.set, "beta": f"β={beta:.3f}", **tags(result, column)},
            spool=folder / SPOOL,
            parent=parent,
            key=f"{parent.run_id}/{result.program.key}/{beta}",
        )
        tracker = Tracker(run)
        tracker.metrics(metrics(result, column), step=result.experiment["steps"])
        tracker.close("FINISHED")


def parameters(result: Result, beta: float) -> dict[str, object]:
    """The parameters of a cell, one set at one beta or by one objective."""
    return {"set": result.set, **flatten(result.experiment | {"beta": beta, "seed": result.seeds})}


def metrics(result: Result, column: int) -> dict[str, float]:
    """A cell's means over seeds."""
    return {name: measured.value for name, measured in _measured(result, column).items()}


def _measured(result: Result, column: int) -> Metrics:
    found = {
        f"eval/sw{order}_n{result.experiment['evaluation']['distance']['samples']}": over_seeds(
            result.grid(f"sw{order}")[:, column]
        )
        for order in (1, 2)
    }
    found["eval/gradient_trace"] = over_seeds(result.grid("trace")[:, column])
    if result.objective is None:
        found["eval/gradient_trace_ratio"] = ratio(result, column)
    return found


def tags(result: Result, column: int) -> dict[str, str]:
    """Tags with a cell's standard errors, and with its objective or how it compares with beta = 0.

    How objectives compare is in the table: they do not end at the same time.
    """
    measured = _measured(result, column).items()
    found = tracking.error_tags({name: known.error for name, known in measured})
    if result.objective is not None:
        found["objective"] = result.objective
    elif result.betas[column] != 0:
        found |= {f"verdict.{name}": verdicts(result, name)[column] for name in ("sw1", "sw2")}
    return found


def render(folder: Path) -> Path:
    """Writes the table of what is finished; ValueError if nothing is."""
    if not (finished := load_all(folder)):
        raise ValueError(f"no finished set in {folder}")
    path = folder / TABLE
    compared = [result for result in finished.values() if result.objective is not None]
    text = objective_tables.document(compared) if compared else document(finished)
    write_whole(path, text)
    return path
