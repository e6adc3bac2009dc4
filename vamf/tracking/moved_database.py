"""Corrects the artifact locations in MLflow's SQLite file after its folder was moved."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vamf.run_layout import ARTIFACTS


def update_artifact_locations(database: Path) -> None:
    """Sets the artifact locations in an SQLite file to the folder beside it, if that exists.

    MLflow stores absolute addresses, and would keep writing to the former folder.
    """
    with closing(sqlite3.connect(database)) as file, file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchall():
            return
        known = file.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        for experiment, before in known:
            if (after := _beside(database, before or "")) is not None:
                file.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                    (after, experiment),
                )
                file.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
                    " WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                    (after, len(before) + 1, experiment, len(before) + 1, f"{before}/"),
                )


def _beside(database: Path, location: str) -> str | None:
    """The address of the folder beside the database, if it exists and is another one."""
    old = Path(unquote(urlsplit(location).path))
    if not location.startswith("file:") or old.parent.name != ARTIFACTS:
        return None
    here = database.parent.resolve() / ARTIFACTS / old.name
    return here.as_uri() if here.is_dir() and here != old.resolve() else None
