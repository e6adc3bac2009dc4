"""Saves a view of MLflow's UI, with its runs and charts arranged, and gives the links to it."""

from collections.abc import Callable, Mapping
from typing import Any

from vamf.compat import mlflow as compat
from vamf.compat import mlflow_view
from vamf.tracking.run import Run

HTTP = ("http://", "https://")
"""How addresses of servers begin; others are opened by the MLflow that is installed here."""


def save(client: Any, run: Run, view: Mapping[str, Any], time_ms: int) -> None:
    """Saves a view of a run's experiment; does nothing for a version of MLflow with another format.

    Raises ValueError if it is too long, or the user may not change the experiment.
    """
    if not mlflow_view.known(_version(client, run.uri)):
        return
    text = mlflow_view.encoded(view["name"], view["state"], time_ms)
    if len(text) > mlflow_view.LENGTH:
        raise ValueError(f"a view must have {mlflow_view.LENGTH} characters; got {len(text)}")
    try:
        client.set_experiment_tag(run.experiment_id, f"{mlflow_view.TAG}{run.run_id}", text)
    except Exception as error:  # of any library below
        if getattr(error, "error_code", None) == "PERMISSION_DENIED":
            raise ValueError(str(error)) from None  # a retry would be refused, too
        raise


def path(client: Callable[[], Any], run: Run) -> str:
    """The address of a run's view, after the server's; without a view, of the run's page.

    Of a server that is away: of the view, which waits in the run's queue.
    """
    view = mlflow_view.path(run.experiment_id, run.run_id)
    try:
        tags = client().get_experiment(run.experiment_id).tags
    except Exception:  # of any library below
        return view
    saved = f"{mlflow_view.TAG}{run.run_id}" in tags
    return view if saved else mlflow_view.run_path(run.experiment_id, run.run_id)


def _version(client: Any, uri: str) -> str:
    """The version of the MLflow that shows the runs; empty if it is not known."""
    if not uri.startswith(HTTP):
        from mlflow.version import VERSION  # also of mlflow-skinny

        return VERSION
    from mlflow.utils.rest_utils import http_request

    answer = http_request(compat.host_credentials(client), "/version", "GET")
    if answer.status_code >= 500:
        raise ConnectionError(f"status {answer.status_code}")  # sent again later
    return answer.text.strip() if answer.status_code == 200 else ""
