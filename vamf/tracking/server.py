"""Creates runs in MLflow and sends events to them."""

import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vamf.compat import mlflow as compat
from vamf.errors import NotCreated
from vamf.file_lock import locked
from vamf.redact import redacted, without_credentials
from vamf.run_layout import LOCK
from vamf.tracking import provenance, shared_view
from vamf.tracking.error_reasons import failure
from vamf.tracking.event_queue import Event, EventQueue
from vamf.tracking.experiments import experiment_of
from vamf.tracking.moved_database import update_artifact_locations
from vamf.tracking.run import Run, database, located
from vamf.tracking.run_creation import KEY, Wait, create_or_find, retried

# MLflow's defaults (7 retries of up to 120 s each, logs and URLs on the terminal, telemetry) suit a
# notebook; vamf.tracking has its own retries and messages.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)


PARAM_LENGTH, TAG_LENGTH = 6000, 8000
"""MLflow's longest parameter and tag, in characters."""
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
"""The most that MLflow takes in one request; for tags as for parameters."""


T = TypeVar("T")


def check(uri: str, before: str = "training") -> None:
    """Sends the server a small request.

    Raises:
        ValueError: it did not answer, within about ten seconds, or refused.
    """
    try:
        _client(uri).search_experiments(max_results=1)
    except Exception as error:  # the libraries below raise exceptions of many kinds
        raise ValueError(f"MLflow must answer before {before}; {failure(uri, error)}") from None


def create(
    uri: str,
    *,
    experiment: str | None = None,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    spool: Path,
    parent: Run | None = None,
    artifact_root: Path | None = None,
    key: str | None = None,
    wait: Wait | None = None,
) -> Run:
    """Creates a run, and its experiment if need be; ``spool`` gets a folder for this run.

    A run with a parent is in its parent's experiment, others in the one of that name: by default
    the one that MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID says, or else ``vamf``.
    ``artifact_root`` is where a new experiment keeps files; without it the server decides, or the
    SQLite file's folder is used.

    The run of a ``key`` is created once, however often this is called. A server that does not
    answer is retried for 20 seconds; with ``wait``, which is called with the reason, until it does.

    Raises:
        NotCreated: MLflow does not answer or refuses, or the experiment was deleted.
    """
    uri = located(uri)
    system = {"mlflow.user": provenance.user(), **provenance.tags()}
    above = {"mlflow.parentRunId": parent.run_id} if parent else {}
    try:
        experiment_id = (
            parent.experiment_id
            if parent
            else retried(
                uri, lambda: experiment_of(_client(uri), uri, experiment, artifact_root), wait
            )
        )
        tags = {**system, **tags, **above, KEY: key or uuid.uuid4().hex}
        everything = {k: redacted(v)[:TAG_LENGTH] for k, v in tags.items()}
        run_id = retried(
            uri, create_or_find(lambda: _client(uri), experiment_id, name, everything), wait
        )
        retried(uri, lambda: _log_params(uri, run_id, params), wait)
    except NotCreated:
        raise
    except Exception as error:  # the libraries below raise exceptions of many kinds
        raise NotCreated(f"run {name!r} was not created; {failure(uri, error)}") from None
    folder = str(spool.resolve() / run_id)
    return Run(uri=uri, run_id=run_id, experiment_id=experiment_id, spool=folder)


def require(run: Run) -> None:
    """Raises NotCreated if MLflow answers that it lacks the run; no error without an answer."""
    address = without_credentials(run.uri)
    expected = f"MLflow at {address} must have run {run.run_id} of {run.directory}"
    try:
        active = _client(run.uri).get_run(run.run_id).info.lifecycle_stage == "active"
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
            return  # events are queued
        raise NotCreated(
            f"{expected}; it has none: --tracking must name the MLflow that the run began with"
        ) from None
    if not active:
        restore = f"`mlflow runs restore --run-id {run.run_id}`"
        raise NotCreated(f"{expected}; it was deleted: {restore} brings it back")


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """A curve of a run: steps and values, in the order of the steps."""
    points = _client(uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def sending_client(uri: str) -> Any:
    """MLflow's client for requests that are not events."""
    return _client(uri)


def view_path(run: Run) -> str:
    """The address of a run's view in the UI, as ``shared_view.path`` has it."""
    return shared_view.path(lambda: _client(run.uri), run)


class Server:
    """MLflow as the receiver of one run's events; each method may raise whatever MLflow does."""

    def __init__(self, run: Run, spool: EventQueue) -> None:
        self.address = run.uri
        self._run = run
        self._spool = spool
        self._steps: dict[str, int] = {}
        self._image_steps: dict[str, int] | None = None

    def refresh(self) -> None:
        """Reads the last step of each curve; those of images only when one is sent."""
        self._steps = compat.last_steps(_client(self._run.uri).get_run(self._run.run_id).data)
        self._image_steps = None

    def send(self, events: list[Event]) -> None:
        """Sends to the server, or to an SQLite file that no other process is writing."""
        _require_unlocked(self._run.uri)
        if events[0].kind == "metrics":
            self._metrics(events)
            return
        send = {
            "image": self._image,
            "artifact": self._artifact,
            "tags": lambda event: _log_tags(self._run, event.data["values"]),
            "view": self._view,
            "dataset": self._dataset,
            "status": lambda event: _set_status(self._run, event),
        }
        for event in events:
            send[event.kind](event)

    def _metrics(self, events: list[Event]) -> None:
        """Sends the points beyond each curve's last step, with the time of each event."""
        from mlflow.entities import Metric

        last, points = dict(self._steps), []
        for event in events:
            step = event.data["step"]
            for key, value in event.data["values"].items():
                if key not in last or step > last[key]:
                    points.append(Metric(key, value, event.time_ms, step))
                    last[key] = step
        for part in _parts(points, METRICS_AT_ONCE):
            _client(self._run.uri).log_batch(self._run.run_id, metrics=part)
        self._steps = last

    def _image(self, event: Event) -> None:
        """Sends an image beyond its key's last step."""
        from PIL import Image

        if self._image_steps is None:
            self._image_steps = _last_image_steps(self._run)
        key, step = event.data["key"], event.data["step"]
        name = compat.image_key(key)
        if step <= self._image_steps.get(name, -1):
            return
        with Image.open(self._spool.file(event)) as image:
            _client(self._run.uri).log_image(
                self._run.run_id, image, key=key, step=step, timestamp=event.time_ms
            )
        self._image_steps[name] = step

    def _artifact(self, event: Event) -> None:
        path = self._spool.file(event)
        if not path.exists():
            raise ValueError(f"a file to log must exist until it is sent; got {path}")
        _client(self._run.uri).log_artifact(self._run.run_id, str(path), event.data["folder"])

    def _view(self, event: Event) -> None:
        shared_view.save(_client(self._run.uri), self._run, event.data, event.time_ms)

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data, context = event.data["dataset"], InputTag("mlflow.data.context", "training")
        found = DatasetInput(Dataset(**data), [context])
        _client(self._run.uri).log_inputs(self._run.run_id, [found])


@cache
def _client(uri: str) -> Any:
    """MLflow's client; fails at once for an unusable SQLite file, MLflow after 100 s."""
    from mlflow import MlflowClient

    if (path := database(uri)) is None:
        return MlflowClient(tracking_uri=uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow creates its tables without a lock: two processes that start together would fail.
    with locked(path.with_name(f"{path.name}{LOCK}"), wait=True):
        _require_unlocked(uri, seconds=10.0)
        update_artifact_locations(path)
        return MlflowClient(tracking_uri=uri)


def _require_unlocked(uri: str, seconds: float = 1.0) -> None:
    """Raises if another process has an SQLite file locked for so long; MLflow waits 20 s."""
    if (path := database(uri)) is not None:
        with closing(sqlite3.connect(path, seconds, isolation_level=None)) as file:
            file.execute("BEGIN IMMEDIATE")
            file.execute("ROLLBACK")


def _log_params(uri: str, run_id: str, params: Mapping[str, object]) -> None:
    """Logs parameters; too long ones are cut, and complete in params_in_full.json."""
    from mlflow.entities import Param

    texts = {key: redacted(str(value)) for key, value in params.items()}
    cut = [Param(key, text[:PARAM_LENGTH]) for key, text in texts.items()]
    for part in _parts(cut, PARAMS_AT_ONCE):
        _client(uri).log_batch(run_id, params=part)
    if long := {key: text for key, text in texts.items() if len(text) > PARAM_LENGTH}:
        _client(uri).log_dict(run_id, long, "params_in_full.json")


def _log_tags(run: Run, values: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(key, text[:TAG_LENGTH]) for key, text in values.items()]
    for part in _parts(tags, PARAMS_AT_ONCE):
        _client(run.uri).log_batch(run.run_id, tags=part)


def _set_status(run: Run, event: Event) -> None:
    """Ends a run at the event's time, or reopens it and deletes its tag ``error``."""
    client, status, message = _client(run.uri), event.data["status"], event.data["message"]
    if message:
        client.set_tag(run.run_id, "error", message[:TAG_LENGTH])
    if status != "RUNNING":
        client.set_terminated(run.run_id, status, event.time_ms)
        return
    client.update_run(run.run_id, status=status)
    if "error" in client.get_run(run.run_id).data.tags:
        client.delete_tag(run.run_id, "error")


def _last_image_steps(run: Run) -> dict[str, int]:
    """The last step of each image key, from the names of the logged files."""
    last: dict[str, int] = {}
    for file in _client(run.uri).list_artifacts(run.run_id, "images"):
        if found := compat.image_step(Path(file.path).name):
            key, step = found
            last[key] = max(last.get(key, -1), step)
    return last


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
