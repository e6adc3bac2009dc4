"""Finds or creates the MLflow experiment of a run."""

import os
import re
from pathlib import Path
from typing import Any

from vamf.compat import mlflow as compat
from vamf.errors import NotCreated
from vamf.run_layout import ARTIFACTS
from vamf.tracking.run import database

DESCRIPTION = """\
Runs of vamf. A search is a run with its trials below it: its description has the verdict, the
table, and a link that opens the comparison of its trials.

| metric | what it means |
|---|---|
| `eval/fd_...`, `eval/fid`, `eval/sw1_...` | distance of samples to real data; lower is better |
| `eval/loss_variance` | variance over samples of the loss per dimension, at the run's own beta |
| `eval/gradient_variance` | variance over batches of the loss's gradient |
| `loss/train` | training loss; not comparable between runs of different loss or beta |
| `grad/norm` | norm of the gradient of a step |
| `beta_star/...` | the beta of the lowest error in a landscape, for the weights at that step |
| `probe/...` | what the paper's formulas estimate |
| `time/...` | seconds of training, of GPUs, and the number of workers |

The tags `error...` have the standard errors: of one evaluation, not of another training.
All settings of a run are in its `experiment.json`; its parameters are those that were chosen.
"""
"""The description of an experiment, unless a user wrote another."""


def experiment_of(client: Any, uri: str, name: str | None, artifact_root: Path | None) -> str:
    """The id of the experiment that the caller or MLflow's environment variables name.

    Raises NotCreated if it was deleted.
    """
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name and (known := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return str(client.get_experiment(known).experiment_id)
    found = _named(client, uri, name or "vamf", artifact_root)
    for key, value in _tags().items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _named(client: Any, uri: str, name: str, artifact_root: Path | None) -> Any:
    """Finds or creates an experiment that MLflow's UI opens on its training runs."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        try:
            client.create_experiment(name, _file_root(uri, name, artifact_root), _tags())
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise NotCreated(f"the MLflow experiment must not be deleted; got deleted {name!r}")
    return found


def _tags() -> dict[str, str]:
    return dict([compat.TRAINING_EXPERIMENT, (compat.NOTE, DESCRIPTION)])


def _file_root(uri: str, experiment: str, root: Path | None) -> str | None:
    """The folder of an experiment's files; MLflow's default for SQLite is the current folder."""
    if root is None and (path := database(uri)) is not None:
        root = path.parent / ARTIFACTS
    folder = re.sub(r"[^\w.= -]|^\.+$", "_", experiment)  # a name may hold slashes
    return (root.resolve() / folder).as_uri() if root else None
