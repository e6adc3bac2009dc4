"""Sends the events that are still in runs' queues."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from vamf.redact import without_credentials
from vamf.run_layout import RUN, SPOOL
from vamf.tracking.event_queue import EventQueue
from vamf.tracking.run import FILE, Run, located, quoted
from vamf.tracking.server import check
from vamf.tracking.tracker import Tracker


class Resent(NamedTuple):
    """How many queued events were sent, were refused, or are left."""

    sent: int
    """Events that MLflow took."""
    refused: int
    """Events that it refused; their queue has them in ``rejected.jsonl``."""
    left: int
    """Events that are still in their queue."""


def resend(folder: Path, uri: str | None = None) -> Resent:
    """Sends all queues in a folder: a storage's, a search's, a run's, or a queue's own.

    ``uri`` replaces the address that each queue has recorded without credentials. By default an
    address with credentials for the same server is taken from MLFLOW_TRACKING_URI; or set
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Raises:
        ValueError: there is no queue, or MLflow does not answer.
    """
    runs = [run_of(queue, uri) for queue in queues(folder)]
    if not runs:
        raise ValueError(f"the folder of a run or a search must hold a spool; got {folder}")
    waiting = [run for run in runs if has_unsent(run)]
    for address in {run.uri for run in waiting}:
        check(address, before="sending")
    return send_all(waiting)


def send_all(runs: list[Run]) -> Resent:
    """Sends the queues of these runs until MLflow does not answer."""
    total = Resent(0, 0, 0)
    for run in runs:
        queue = EventQueue(Path(run.spool))
        before, refused = queue.waiting(), queue.refused()
        if not total.left:  # each attempt at a server that hangs takes long
            Tracker(run).flush()
        left, new = queue.waiting(), queue.refused() - refused
        gone = max(0, before - left - new)  # a run that is training adds events meanwhile
        total = Resent(total.sent + gone, total.refused + new, total.left + left)
    return total


def has_unsent(run: Run) -> bool:
    """Whether a run's queue holds events."""
    return not EventQueue(Path(run.spool)).empty()


def queues(folder: Path) -> Iterator[Path]:
    """The queues at or below a folder: each has its run's id as name, and a ``run.json``."""
    for file in sorted(folder.resolve().rglob(RUN)):
        with suppress(OSError, ValueError, AttributeError):  # another program's file
            if json.loads(file.read_text()).get("run_id") == file.parent.name:
                yield file.parent


def run_of(queue: Path, uri: str | None) -> Run:
    """The run of a queue, with their present locations."""
    run = replace(Run(**json.loads((queue / RUN).read_text())), spool=str(queue))
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and given and without_credentials(located(given)) == run.uri:
        uri = given
    return replace(run, uri=located(uri) if uri else _beside(queue, run.uri))


def address_of(folder: Path) -> str | None:
    """The tracking address, without credentials, of the run or search in a folder."""
    kept = sorted((folder / SPOOL).glob(f"*/{RUN}"), key=lambda file: file.stat().st_mtime)
    return run_of(kept[-1].parent, None).uri if kept else None


def _beside(queue: Path, uri: str) -> str:
    """The address; with the present path if its SQLite file was moved with the queue."""
    if match := FILE.fullmatch(uri):
        before, path, after = match.groups()
        paths = (parent / Path(unquote(path)).name for parent in queue.parents)
        return next((f"{before}{quoted(path)}{after}" for path in paths if path.exists()), uri)
    return uri
