"""Registers the best checkpoint of a run in MLflow, for the jobs that train."""

import tempfile
from pathlib import Path

from vamf import commands
from vamf.errors import RunFailed
from vamf.inference.export import export
from vamf.run_layout import RUN
from vamf.store import StoragePath
from vamf.tracking import Run
from vamf.tracking.registry import register


def register_best(directory: Path, uri: str, name: str, location: StoragePath) -> str:
    """Exports and registers the best checkpoint of a run; returns the model's address in MLflow.

    ``directory`` is the run's folder, ``uri`` MLflow's address, ``location`` what users call the
    run: its folder, or its address in an object store. Raises RunFailed, with the command that
    tries again, if MLflow refuses.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.safetensors"
            step = export(Path(str(location)), out)
            return register(Run.load(directory / RUN, uri), out, step, name)
    except ValueError as error:
        again = commands.shown("export", location, "--register", name)
        raise RunFailed(f"{error}; to try again: {again}") from None
