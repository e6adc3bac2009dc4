"""Sending what runs could not send while they ran."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from vamf.tracking.reasons import where
from vamf.tracking.run import FILE, SPOOL, Run, located, quoted
from vamf.tracking.server import check
from vamf.tracking.spool import Spool
from vamf.tracking.tracker import Tracker


class Resent(NamedTuple):
    """What became of the events that waited."""

    sent: int
    """Events that MLflow took."""
    refused: int
    """Events that it refused for good; they are kept in ``rejected.jsonl`` of their queue."""
    left: int
    """Events that still wait."""


def resend(folder: Path, uri: str | None = None) -> Resent:
    """Sends what waits in all queues in a folder: a storage's, a search's, a run's, or a queue.

    ``uri`` replaces the address that each queue has noted, which has no credentials; one with
    credentials for the same server is taken from MLFLOW_TRACKING_URI, and
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD serve too.

    Raises:
        ValueError: no queue is there, or MLflow does not answer.
    """
    runs = [noted(queue, uri) for queue in queues(folder)]
    if not runs:
        raise ValueError(f"the folder of a run or a search must hold a spool; got {folder}")
    waiting = [run for run in runs if waits(run)]
    for address in {run.uri for run in waiting}:
        check(address, before="sending")
    return sent(waiting)


def sent(runs: list[Run]) -> Resent:
    """Sends what waits for these runs, until MLflow does not answer, and counts."""
    total = Resent(0, 0, 0)
    for run in runs:
        queue = Spool(Path(run.spool))
        before, refused = queue.waiting(), queue.refused()
        if not total.left:  # to find out for each run that a server hangs would take minutes
            Tracker(run).flush()
        left, new = queue.waiting(), queue.refused() - refused
        gone = max(0, before - left - new)  # a run that goes on adds some meanwhile
        total = Resent(total.sent + gone, total.refused + new, total.left + left)
    return total


def waits(run: Run) -> bool:
    """Whether events of a run still wait."""
    return not Spool(Path(run.spool)).empty()


def queues(folder: Path) -> Iterator[Path]:
    """The queues that are, or lie in, a folder: each has the name of its run, and notes it."""
    for file in sorted(folder.resolve().rglob("run.json")):
        with suppress(OSError, ValueError, AttributeError):  # another program's file
            if json.loads(file.read_text()).get("run_id") == file.parent.name:
                yield file.parent


def noted(queue: Path, uri: str | None) -> Run:
    """The run of a queue, where both are now."""
    run = replace(Run(**json.loads((queue / "run.json").read_text())), spool=str(queue))
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and given and where(located(given)) == run.uri:
        uri = given
    return replace(run, uri=located(uri) if uri else _beside(queue, run.uri))


def address_of(folder: Path) -> str | None:
    """The address, without credentials, that a run, or a search, in a folder was tracked at."""
    kept = sorted((folder / SPOOL).glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    return noted(kept[-1].parent, None).uri if kept else None


def _beside(queue: Path, uri: str) -> str:
    """The address; of an SQLite file that was moved with the queue, where it is now."""
    if match := FILE.fullmatch(uri):
        before, path, after = match.groups()
        places = (parent / Path(unquote(path)).name for parent in queue.parents)
        return next((f"{before}{quoted(place)}{after}" for place in places if place.exists()), uri)
    return uri
