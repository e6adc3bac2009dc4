"""Making a run once, on a server that may be slow, busy or away."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vamf.tracking.courier import RETRY_S, is_refusal
from vamf.tracking.reasons import failure

CREATE_S = 20.0
"""Seconds for which the creation of a run tries again."""

LOOK_S = 5.0
"""Seconds for which a run is looked for that a request may have made whose answer did not come."""

KEY = "vamf.key"
"""The tag that no two runs share."""

T = TypeVar("T")
Wait = Callable[[str], None]


class NotCreated(ValueError):
    """MLflow made no run, for reasons of its own: it was away, or refused."""


def patiently(uri: str, action: Callable[[], T], wait: Wait | None) -> T:
    """Repeats an action that a locked database or a busy server fails.

    For a while, or with ``wait``, which hears why, for as long as it takes.
    """
    give_up = time.monotonic() + CREATE_S
    while True:
        try:
            return action()
        except Exception as error:  # any library below; what is no passing failure is raised again
            late = time.monotonic() >= give_up
            if is_refusal(error) or (late and wait is None):
                raise
            if wait is not None:
                wait(failure(uri, error))
        time.sleep(RETRY_S if late else 0.5)


def made(
    client: Callable[[], Any], experiment_id: str, name: str, tags: Mapping[str, str]
) -> Callable[[], str]:
    """What makes the run with these tags, or finds it, and returns its id; to be tried again.

    A request whose answer did not come may have made the run, or may do so a little later.
    """
    only, looking = f"tags.`{KEY}` = '{tags[KEY]}'", 0.0
    lost: Exception | None = None

    def known() -> list[str]:
        runs = client().search_runs([experiment_id], only, order_by=["attributes.start_time"])
        return [run.info.run_id for run in runs]

    def make() -> str:
        nonlocal looking, lost
        found = known()
        if not found:
            if lost is not None and time.monotonic() < looking:
                raise lost
            try:
                run = client().create_run(experiment_id, tags=tags, run_name=name)
            except Exception as error:
                looking, lost = time.monotonic() + LOOK_S, error
                raise
            found = [run.info.run_id] if lost is None else known()
        for late in found[1:]:
            client().delete_run(late)
        return found[0]

    return make
