"""MLflow itself: the only module that imports it, lazily."""

import os
import re
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vamf.redact import redacted
from vamf.tracking import provenance
from vamf.tracking.making import KEY, NotCreated, Wait, made, patiently
from vamf.tracking.moved import ARTIFACTS, follow
from vamf.tracking.reasons import failure, where
from vamf.tracking.run import Run, database, located
from vamf.tracking.spool import Event, Spool, locked

# MLflow's own choices (7 retries of up to 120 s each, logs and URLs on the terminal, telemetry)
# suit a notebook; the tracker here retries by itself and speaks for itself.
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
    """Asks the server for anything at all.

    Raises:
        ValueError: it did not answer, within about ten seconds, or refused.
    """
    try:
        _client(uri).search_experiments(max_results=1)
    except Exception as error:  # any failure, of any library below, means the same to the user
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

    The run of a ``key`` is made once, however often it is asked for. A server that does not answer
    is asked for 20 seconds, or with ``wait``, which hears why, until it does.

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
            else patiently(uri, lambda: _chosen(uri, experiment, artifact_root), wait)
        )
        tags = {**system, **tags, **above, KEY: key or uuid.uuid4().hex}
        everything = {k: redacted(v)[:TAG_LENGTH] for k, v in tags.items()}
        run_id = patiently(uri, made(lambda: _client(uri), experiment_id, name, everything), wait)
        patiently(uri, lambda: _log_params(uri, run_id, params), wait)
    except NotCreated:
        raise
    except Exception as error:  # any failure, of any library below, means the same to the user
        raise NotCreated(f"run {name!r} was not created; {failure(uri, error)}") from None
    folder = str(spool.resolve() / run_id)
    return Run(uri=uri, run_id=run_id, experiment_id=experiment_id, spool=folder)


def require(run: Run) -> None:
    """Raises NotCreated if MLflow answers that it lacks the run; one that is away may have it."""
    try:
        active = _client(run.uri).get_run(run.run_id).info.lifecycle_stage == "active"
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
            return  # what is to be sent waits
        raise NotCreated(
            f"MLflow at {where(run.uri)} must have run {run.run_id} of {run.directory}; it has "
            "none: --tracking must name the MLflow that the run began with"
        ) from None
    if not active:
        restore = f"`mlflow runs restore --run-id {run.run_id}`"
        raise NotCreated(
            f"MLflow at {where(run.uri)} must have run {run.run_id} of {run.directory}; it was "
            f"deleted: {restore} brings it back"
        )


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """A curve of a run: steps and values, in the order of the steps."""
    points = _client(uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


class Server:
    """MLflow as the receiver of one run's events; each method may raise whatever MLflow does."""

    def __init__(self, run: Run, spool: Spool) -> None:
        self.address = run.uri
        self._run = run
        self._spool = spool
        self._steps: dict[str, int] = {}
        self._image_steps: dict[str, int] | None = None

    def refresh(self) -> None:
        """Reads the last step of each curve; of the images only once there is one to send."""
        data = _client(self._run.uri).get_run(self._run.run_id).data.to_proto()
        self._steps = {metric.key: metric.step for metric in data.metrics}
        self._image_steps = None

    def send(self, events: list[Event]) -> None:
        """Sends to the server, or to an SQLite file that nobody else is writing."""
        _ask(self._run.uri)
        if events[0].kind == "metrics":
            self._metrics(events)
            return
        send = {
            "image": self._image,
            "artifact": self._artifact,
            "tags": lambda event: _log_tags(self._run, event.data["values"]),
            "status": lambda event: _set_status(self._run, event),
        }
        for event in events:
            send[event.kind](event)

    def _metrics(self, events: list[Event]) -> None:
        """Sends the points beyond each curve's last step, with the time at which they were made."""
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
        name = key.replace("/", "~")
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


@cache
def _client(uri: str) -> Any:
    """MLflow's client; an unusable SQLite file fails here, where MLflow would try for 100 s."""
    from mlflow import MlflowClient

    if (path := database(uri)) is None:
        return MlflowClient(tracking_uri=uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow creates its tables without a lock: two processes that start together would collide.
    with locked(path.with_name(f"{path.name}.lock"), wait=True):
        _ask(uri, seconds=10.0)
        follow(path)
        return MlflowClient(tracking_uri=uri)


def _ask(uri: str, seconds: float = 1.0) -> None:
    """Fails after so long if another process holds an SQLite file; MLflow would wait for 20 s."""
    if (path := database(uri)) is not None:
        with closing(sqlite3.connect(path, seconds, isolation_level=None)) as file:
            file.execute("BEGIN IMMEDIATE")
            file.execute("ROLLBACK")


def _chosen(uri: str, name: str | None, artifact_root: Path | None) -> str:
    """The experiment that the caller or the environment asks for, as MLflow's own tools read it."""
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name and (known := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return _client(uri).get_experiment(known).experiment_id
    return _experiment(uri, name or "vamf", artifact_root)


def _experiment(uri: str, name: str, artifact_root: Path | None) -> str:
    """Finds or creates an experiment that MLflow's UI opens on its training runs."""
    from mlflow.exceptions import MlflowException

    client, kind = _client(uri), ("mlflow.experimentKind", "custom_model_development")
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(
                name, _file_root(uri, name, artifact_root), dict([kind])
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise NotCreated(f"the MLflow experiment must not be deleted; got deleted {name!r}")
    if kind[0] not in found.tags:
        client.set_experiment_tag(found.experiment_id, *kind)
    return found.experiment_id


def _file_root(uri: str, experiment: str, root: Path | None) -> str | None:
    """Where an experiment's files go; MLflow alone would put SQLite's into the current folder."""
    if root is None and (path := database(uri)) is not None:
        root = path.parent / ARTIFACTS
    folder = re.sub(r"[^\w.= -]|^\.+$", "_", experiment)  # a name may hold slashes
    return (root.resolve() / folder).as_uri() if root else None


def _log_params(uri: str, run_id: str, params: Mapping[str, object]) -> None:
    """Logs parameters; those too long for MLflow are cut, and whole in params_in_full.json."""
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
    """Ends a run as of the event's time, or reopens it and forgets why it ended."""
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
    """The last step of each image key, read off the names MLflow gives the files."""
    last: dict[str, int] = {}
    for file in _client(run.uri).list_artifacts(run.run_id, "images"):
        if match := re.match(r"(.+?)[+%]step[+%](\d+)[+%]timestamp[+%]", Path(file.path).name):
            last[match[1]] = max(last.get(match[1], -1), int(match[2]))
    return last


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
