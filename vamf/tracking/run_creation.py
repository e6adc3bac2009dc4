"""Creates an MLflow run exactly once, on a server that may be slow or unreachable."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vamf.tracking.error_reasons import failure
from vamf.tracking.event_sender import RETRY_S, is_refusal

CREATE_S = 20.0
"""Seconds for which the creation of a run is retried."""

LOOK_S = 5.0
"""Seconds of searching for a run that a request without an answer may have created."""

KEY = "vamf.key"
"""The tag that no two runs share."""

T = TypeVar("T")
Wait = Callable[[str], None]


def retried(uri: str, action: Callable[[], T], wait: Wait | None) -> T:
    """Retries an action that fails because of a locked database or a busy server.

    For ``CREATE_S`` seconds; with ``wait``, which is called with the reason, without a limit.
    """
    deadline = time.monotonic() + CREATE_S
    while True:
        try:
            return action()
        except Exception as error:  # of any library below; permanent ones are raised
            late = time.monotonic() >= deadline
            if is_refusal(error) or (late and wait is None):
                raise
            if wait is not None:
                wait(failure(uri, error))
        time.sleep(RETRY_S if late else 0.5)


def create_or_find(
    client: Callable[[], Any], experiment_id: str, name: str, tags: Mapping[str, str]
) -> Callable[[], str]:
    """A function that creates the run with these tags, or finds it, and returns its id.

    It can be retried. A request without an answer may have created the run, or may do so later.
    """
    condition, search_until = f"tags.`{KEY}` = '{tags[KEY]}'", 0.0
    lost: Exception | None = None

    def known() -> list[str]:
        runs = client().search_runs([experiment_id], condition, order_by=["attributes.start_time"])
        return [run.info.run_id for run in runs]

    def make() -> str:
        nonlocal search_until, lost
        found = known()
        if not found:
            if lost is not None and time.monotonic() < search_until:
                raise lost
            try:
                run = client().create_run(experiment_id, tags=tags, run_name=name)
            except Exception as error:
                search_until, lost = time.monotonic() + LOOK_S, error
                raise
            found = [run.info.run_id] if lost is None else known()
        for late in found[1:]:
            client().delete_run(late)
        return found[0]

    return make
