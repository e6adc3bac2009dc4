"""Logs an exported network as a model of its MLflow run, and registers it."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from vamf.tracking.error_reasons import failure
from vamf.tracking.model import save_model
from vamf.tracking.run import Run
from vamf.tracking.server import require, sending_client
from vamf.tracking.shared_view import HTTP

ALIAS = "best"
"""The alias of the version that was registered last."""


FORBIDDEN = "/:.%\"'"
"""The characters that MLflow takes in no name of a model."""


def check_name(name: str) -> None:
    """Raises ValueError for a name of a model that MLflow does not take."""
    if not name.strip() or any(character in FORBIDDEN for character in name):
        raise ValueError(f"a model's name must be some text without {FORBIDDEN}; got {name!r}")


def register(run: Run, exported: Path, step: int, name: str) -> str:
    """Logs the network of a run's step as a model, and registers it; returns the model's address.

    The new version of ``name`` gets the alias ``best``. Raises ValueError for a name that MLflow
    does not take, and if it has no such run, does not answer or refuses.
    """
    check_name(name)
    require(run)
    with tempfile.TemporaryDirectory() as folder:
        save_model(exported, Path(folder) / "model")
        try:
            return _logged(sending_client(run.uri), run, Path(folder) / "model", step, name)
        except Exception as error:  # the libraries below raise exceptions of many kinds
            raise ValueError(f"{name!r} was not registered; {failure(run.uri, error)}") from None


def _logged(client: Any, run: Run, folder: Path, step: int, name: str) -> str:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    made = client.create_logged_model(
        run.experiment_id, name=name, source_run_id=run.run_id, params={"step": str(step)}
    )
    model = made.model_id
    # Without a server MLflow looks for such an address in the database of its own default.
    source = f"models:/{model}" if run.uri.startswith(HTTP) else made.artifact_location
    client.log_model_artifacts(model, str(folder))
    client.finalize_logged_model(model, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model, step)])
    with suppress(MlflowException):  # it exists; otherwise the next request fails
        client.create_registered_model(name)
    version = client.create_model_version(name, source, run_id=run.run_id, model_id=model).version
    client.set_registered_model_alias(name, ALIAS, version)
    return f"models:/{name}@{ALIAS}"
