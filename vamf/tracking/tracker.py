"""Logging to a run: from one process at a time, through a queue, without ever raising."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from vamf.files import make_folder, write_whole
from vamf.output import say
from vamf.redact import redacted
from vamf.tracking.courier import Courier
from vamf.tracking.reasons import where
from vamf.tracking.run import Run
from vamf.tracking.server import Server, require
from vamf.tracking.spool import Spool

CLOSE_S = 30.0
"""Seconds for which the end of a run waits for a server that does not answer."""


Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Logs to a run from one process at a time, without ever raising for MLflow's sake.

    A point of a curve, or an image, is sent once for each (key, step): a restarted worker that
    logs the same steps again adds only those beyond the last one MLflow has.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._spool = Spool(Path(run.spool))
        self._courier = Courier(self._spool, Server(run, self._spool))
        self._courier.guarded(self._describe)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve; values need not be finite."""
        self._courier.post(
            "metrics", values={k: float(v) for k, v in values.items()}, step=int(step)
        )

    def image(self, path: Path, key: str, step: int) -> None:
        """Adds a PNG file to the images of a key, which MLflow shows with a slider over steps."""
        self._courier.post("image", path=self._spool.reference(path), key=key, step=int(step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file, or a folder, into a folder of the run's artifacts."""
        self._courier.post("artifact", path=self._spool.reference(path), folder=folder)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._courier.post("tags", values={k: redacted(str(v)) for k, v in values.items()})

    def flush(self, deadline_s: float = 0.0) -> bool:
        """Tries to send what waits, at least once and for so many seconds; whether all is sent."""
        give_up = time.monotonic() + deadline_s
        while not self._courier.attempt():
            left = give_up - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(1.0, left))
        return True

    def close(self, status: Status, message: str | None = None) -> None:
        """Sets how the run ended; a message becomes the tag ``error``."""
        self._courier.post("status", status=status, message=message and redacted(message))
        if not self.flush(CLOSE_S):
            folder = self._run.spool
            line = f"Not yet sent to MLflow: what is in {folder}"
            say(f"{line}; python -m jobs.resend {folder} sends it", error=True)

    def reopen(self) -> None:
        """Sets a run that ended back to running, after what still waits for it."""
        self._courier.post("status", status="RUNNING", message=None)

    def _describe(self) -> None:
        """Leaves beside the queue which run it is for, without credentials."""
        make_folder(self._spool.folder, above=1)
        known = asdict(self._run) | {"uri": where(self._run.uri)}
        write_whole(self._spool.folder / "run.json", json.dumps(known))


def rejoin(run: Run) -> None:
    """Sets a run that ended back to running, after what still waited for it.

    Raises NotCreated if MLflow answers that it has no such run.
    """
    require(run)
    Tracker(run).reopen()
