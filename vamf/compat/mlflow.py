"""The private and unstable names of MLflow that vamf uses."""

import re
from typing import Any

TRAINING_EXPERIMENT = ("mlflow.experimentKind", "custom_model_development")
"""The tag, and its value, of an experiment that MLflow's UI opens on its training runs.

Unstable: it is spelled in the UI's JavaScript only. Without it the UI opens on an empty page of
traces.
"""


WITHOUT_JOBS = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
"""The environment variable with which MLflow's UI starts 2 processes instead of 11.

Unstable: it is not documented. Without it the UI takes 2.6 GiB instead of 0.6.
"""

NOTE = "mlflow.note.content"
"""The tag whose text, in Markdown, the UI shows as the description of a run or an experiment."""


def host_credentials(client: Any) -> Any:
    """The address and credentials with which a client sends requests to its server.

    Private: the client's store. Without it the version of a server would not be known.
    """
    return client._tracking_client.store.get_host_creds()


def last_steps(data: Any) -> dict[str, int]:
    """The last step of each metric in a run's data, ``mlflow.entities.RunData``.

    Private: ``RunData.to_proto``; ``RunData.metrics`` has the values only. Without it a resumed run
    would need a request for each metric, or log points twice.
    """
    return {metric.key: metric.step for metric in data.to_proto().metrics}


def image_key(key: str) -> str:
    """An image's key as MLflow writes it in file names. Unstable, as ``image_step`` is."""
    return key.replace("/", "~")


def image_step(file_name: str) -> tuple[str, int] | None:
    """The written key and the step of a logged image's file; None of another file.

    Unstable: how ``MlflowClient.log_image`` names files, with ``+``, earlier with ``%``. Without it
    a resumed run logs its images twice.
    """
    match = re.match(r"(.+?)[+%]step[+%](\d+)[+%]timestamp[+%]", file_name)
    return (match[1], int(match[2])) if match else None
