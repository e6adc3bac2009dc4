"""A reproduction in MLflow: a parent run, a child for each (set, beta), and the table."""

from pathlib import Path

from vamf import tracking
from vamf.cluster.launch import closing
from vamf.files import claimed, write_whole
from vamf.output import say
from vamf.reproduction import work
from vamf.reproduction.protocol import Protocol, claim
from vamf.reproduction.results import Result, load_all
from vamf.reproduction.tables import document, over_seeds, ratio, verdicts
from vamf.reproduction.work import Computing
from vamf.tracking import Run, Tracker
from vamf.tracking.spool import locked
from vamf.values import flatten

RUN, TABLE = "run.json", "reproduction.md"


def reproduce(
    protocol: Protocol, computing: Computing, folder: Path, uri: str, *, numbered: bool = False
) -> None:
    """Trains what is left, publishes each set when it is finished, and prints how it goes.

    With ``numbered`` it is a new one, whose folder takes another name if its own is taken.
    Raises ValueError if MLflow does not answer at the start; later it costs a line.
    """
    tracking.check(uri)
    folder = claimed(folder, numbered=True) if numbered else folder
    claim(folder, protocol)
    run = parent(protocol, folder, uri)
    with closing(run):
        _publish(folder, run)
        for result in work.run(protocol, folder, computing):
            say(f"{result.set} is finished after {result.seconds:.0f} s")
            _publish(folder, run)
    if left := work.unfinished(protocol, folder):
        Tracker(run).close("KILLED", f"paused with {len(left)} sets left")
        say(f"{len(left)} sets are left; the same command with --name {folder.name} goes on")
    say(f"table      {folder / TABLE}")
    say(f"compare    {tracking.ui_command(uri, folder.parent)}")


def _publish(folder: Path, run: Run) -> None:
    try:
        publish(folder, run)
    except ValueError as error:
        say(f"not published: {error}")


def parent(protocol: Protocol, folder: Path, uri: str) -> Run:
    """The run of a reproduction: made by whoever comes first, joined by the others.

    Raises ValueError if MLflow does not answer.
    """
    marker = folder / RUN
    with locked(folder / f".{RUN}.lock", wait=True):
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
            spool=folder / "spool",
        )
        run.save(marker)
    return run


def publish(folder: Path, parent: Run) -> None:
    """Sends every finished set that was not sent yet, and the table.

    Raises ValueError if MLflow does not answer; called again, it goes on with the next set.
    """
    finished = load_all(folder)
    for name, result in finished.items():
        sent = folder / f".{name}.sent"
        with locked(folder / f".{name}.lock", wait=True):
            if not sent.exists():
                cells(result, parent, folder)
                sent.touch()
    if finished:
        tracker = Tracker(parent)
        tracker.artifact(render(folder))
        tracker.flush()


def cells(result: Result, parent: Run, folder: Path) -> None:
    """A finished child run for each beta of a set."""
    for column, beta in enumerate(result.betas):
        run = tracking.create(
            parent.uri,
            name=f"{result.set} β={beta:.3f}",
            params=parameters(result, beta),
            tags={"set": result.set, "beta": f"β={beta:.3f}", **verdict_tags(result, column)},
            spool=folder / "spool",
            parent=parent,
            key=f"{parent.run_id}/{result.set}/{beta}",
        )
        tracker = Tracker(run)
        tracker.metrics(figures(result, column), step=result.experiment["steps"])
        tracker.close("FINISHED")


def parameters(result: Result, beta: float) -> dict[str, object]:
    """What a cell was trained with."""
    return {"set": result.set, **flatten(result.experiment | {"beta": beta, "seed": result.seeds})}


def figures(result: Result, column: int) -> dict[str, float]:
    """A cell's means over seeds, with their errors."""
    found = {
        f"eval/sw{order}_n{result.experiment['evaluation']['distance']['samples']}": over_seeds(
            result.grid(f"sw{order}")[:, column]
        )
        for order in (1, 2)
    }
    found["eval/gradient_trace"] = over_seeds(result.grid("trace")[:, column])
    found["eval/gradient_trace_ratio"] = ratio(result, column)
    values = {name: figure.value for name, figure in found.items()}
    return values | {f"{name}_se": figure.error for name, figure in found.items()}


def verdict_tags(result: Result, column: int) -> dict[str, str]:
    """How a cell compares with beta = 0."""
    if result.betas[column] == 0:
        return {}
    return {f"verdict.{name}": verdicts(result, name)[column] for name in ("sw1", "sw2")}


def render(folder: Path) -> Path:
    """Writes the table of what is finished; ValueError if nothing is."""
    if not (finished := load_all(folder)):
        raise ValueError(f"no finished set in {folder}")
    path = folder / TABLE
    write_whole(path, document(finished))
    return path
