"""Ends an MLflow run with the status that the code inside a block leads to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vamf import signals
from vamf.tracking.run import Run
from vamf.tracking.tracker import Tracker


@dataclass
class Ending:
    """How an MLflow run ends if nothing is raised."""

    stopped: str | None = None
    """Why it was stopped before its last step, if it was; it becomes the tag ``stopped``."""


@contextmanager
def closing(run: Run) -> Iterator[Ending]:
    """Sets a run to finished at the block's end, to failed or killed if the block raises."""
    ending = Ending()
    try:
        yield ending
    except (KeyboardInterrupt, SystemExit) as end:  # the latter: Ray ends a trial
        asked = signals.cause(end)
        Tracker(run).close("KILLED", f"ended by {asked}" if asked else "interrupted")
        raise
    except BaseException as error:
        Tracker(run).close("FAILED", f"{type(error).__name__}: {error}")
        raise
    if ending.stopped is not None:
        Tracker(run).tags({"stopped": ending.stopped})
    Tracker(run).close("FINISHED" if ending.stopped is None else "KILLED")
