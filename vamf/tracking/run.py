"""A run of MLflow as a value, and where runs are kept."""

import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from vamf.tracking.courier import where

SPOOL = "spool"
"""The folder, in a run's, that holds a folder for each MLflow run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of MLflow as a value that travels to workers."""

    uri: str = field(repr=False)
    """The tracking server, or database; it may hold credentials."""
    run_id: str
    experiment_id: str
    spool: str
    """Folder, on storage that every worker sees, for what could not be sent yet."""

    def kept_in(self, directory: Path) -> "Run":
        """The same run, with what could not be sent yet in this folder of the run."""
        return replace(self, spool=str(directory.resolve() / SPOOL / self.run_id))


def default_uri(storage: Path) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, else an SQLite file in the storage folder."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def database(uri: str) -> Path | None:
    """The SQLite file that an address names, if it names one."""
    _, found, path = uri.partition("sqlite:///")
    return Path(path).resolve() if found else None


def ui_command(uri: str, storage: Path) -> str:
    """The command that shows the runs in a browser, without the credentials of an address.

    Files that the UI itself needs go to storage.
    """
    if uri.startswith(("http://", "https://")):
        return f"open {where(uri)}"
    files = shlex.quote(str(storage.resolve() / "mlartifacts"))
    store = shlex.quote(where(uri))
    # MLflow's four workers take half a minute to start on a small machine; one reader needs one.
    flags = f"--backend-store-uri {store} --artifacts-destination {files} --workers 1"
    return f"uv run mlflow ui {flags} --host 127.0.0.1"
