"""Ends an MLflow run with the status that the code inside a block leads to."""

from collections.abc import Callable, Iterator
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
def closing(run: Run, ends: Callable[[], bool] = lambda: True) -> Iterator[Ending]:
    """Sets a run to finished at the block's end, to failed or killed if the block raises.

    ``ends`` says at the block's end whether the run ends with it; otherwise nothing is done.
    """
    ending = Ending()
    try:
        yield ending
    except (KeyboardInterrupt, SystemExit) as end:  # the latter: Ray ends a trial
        if ends():
            asked = signals.cause(end)
            Tracker(run).close("KILLED", f"ended by {asked}" if asked else "interrupted")
        raise
    except BaseException as error:
        if ends():
            Tracker(run).close("FAILED", f"{type(error).__name__}: {error}")
        raise
    if not ends():
        return
    if ending.stopped is not None:
        Tracker(run).tags({"stopped": ending.stopped})
    Tracker(run).close("FINISHED" if ending.stopped is None else "KILLED")
