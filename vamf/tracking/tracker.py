"""Logs to an MLflow run through a queue, without raising MLflow's errors."""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vamf import commands
from vamf.files import make_folder, write_whole
from vamf.output import say
from vamf.redact import redacted, without_credentials
from vamf.run_layout import RUN
from vamf.tracking.event_queue import EventQueue
from vamf.tracking.event_sender import EventSender
from vamf.tracking.run import Run
from vamf.tracking.server import Server, require

CLOSE_S = 30.0
"""Seconds that the end of a run waits for a server that does not answer."""


Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Logs to a run, from one process at a time; never raises an error of MLflow.

    A point of a curve, or an image, is sent once for each (key, step): a restarted worker that
    logs the same steps again adds only those beyond the last one MLflow has.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._spool = EventQueue(Path(run.spool))
        self._sender = EventSender(self._spool, Server(run, self._spool))
        self._sender.guarded(self._describe)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve; values need not be finite."""
        self._sender.post(
            "metrics", values={k: float(v) for k, v in values.items()}, step=int(step)
        )

    def image(self, path: Path, key: str, step: int) -> None:
        """Adds a PNG file to the images of a key, which MLflow shows with a slider over steps."""
        self._sender.post("image", path=self._spool.reference(path), key=key, step=int(step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file, or a folder, into a folder of the run's artifacts."""
        self._sender.post("artifact", path=self._spool.reference(path), folder=folder)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._sender.post("tags", values={k: redacted(str(v)) for k, v in values.items()})

    def view(self, name: str, state: Mapping[str, Any]) -> None:
        """Saves how MLflow's UI shows the runs below this one; ``compat.mlflow_view`` makes it."""
        self._sender.post("view", name=name, state=dict(state))

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Records the data that the run trains on; ``source`` is JSON."""
        data = {"name": name, "digest": digest, "source_type": "code", "source": redacted(source)}
        self._sender.post("dataset", dataset=data)

    def in_background(self) -> AbstractContextManager[None]:
        """Within the block a thread sends the events, so that logging does not wait for MLflow."""
        return self._sender.in_background()

    def flush(self, deadline_s: float = 0.0) -> bool:
        """Sends the queue, with retries for so many seconds; returns whether it is empty."""
        deadline = time.monotonic() + deadline_s
        while not self._sender.attempt():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(1.0, left))
        return True

    def close(self, status: Status, message: str | None = None) -> None:
        """Ends the run with a status; a message becomes the tag ``error``."""
        self._sender.post("status", status=status, message=message and redacted(message))
        if not self.flush(CLOSE_S):
            folder = self._run.spool
            line = f"Not yet sent to MLflow: what is in {folder}"
            say(f"{line}; {commands.shown('resend', folder)} sends it", error=True)

    def reopen(self) -> None:
        """Sets a run that ended back to running, after the events in its queue."""
        self._sender.post("status", status="RUNNING", message=None)

    def _describe(self) -> None:
        """Writes the run to the queue's folder, without credentials."""
        make_folder(self._spool.folder, above=1)
        known = asdict(self._run) | {"uri": without_credentials(self._run.uri)}
        write_whole(self._spool.folder / RUN, json.dumps(known))


def rejoin(run: Run) -> None:
    """Sets a run that ended back to running, after the events in its queue.

    Raises NotCreated if MLflow answers that it has no such run.
    """
    require(run)
    Tracker(run).reopen()


def error_tags(errors: Mapping[str, float]) -> dict[str, str]:
    """Standard errors of metrics, by the metrics' names, as a tag for each group of metrics."""
    groups: dict[str, list[str]] = {}
    for name, error in errors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(f"error.{group}", []).append(f"{rest} ± {error:.2g}")
    return {name: ", ".join(parts) for name, parts in groups.items()}
