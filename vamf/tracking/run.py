"""A run of MLflow as a value, and where runs are kept."""

import json
import os
import re
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from vamf.files import expanded, write_whole
from vamf.tracking.moved import ARTIFACTS
from vamf.tracking.reasons import where

SPOOL = "spool"
"""The folder, in a run's, that holds a folder for each MLflow run."""


FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!:memory:|file:)([^?]+)(\?[^/?]*|)")
"""The address of an SQLite file, in three parts; one in memory is none."""

SQLITE = re.compile(r"sqlite(\+\w+)?:")
"""How addresses of SQLite begin, also those that name no file."""

QUOTED = str.maketrans({character: f"%{ord(character):02X}" for character in "%?{}"})
"""What must not stand in the address of a file: SQLAlchemy reads the first two, Optuna braces."""

SERVICES = ("databricks", "databricks-uc", "uc")
"""Addresses that name a service without ``://``, alone or before a colon."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of MLflow as a value that travels to workers."""

    uri: str = field(repr=False)
    """The tracking server, or database; it may hold credentials."""
    run_id: str
    experiment_id: str
    spool: str
    """Folder, on storage that every worker sees, for what could not be sent yet."""

    @property
    def directory(self) -> Path:
        """The folder of the run that was made here, or, before it was moved, elsewhere."""
        return Path(self.spool).parents[1]

    @classmethod
    def load(cls, file: Path, uri: str) -> "Run":
        """Reads a run's ``run.json``, in whatever folder it lies now; the address is given anew."""
        return cls(**json.loads(file.read_text()) | {"uri": uri}).kept_in(file.parent)

    def save(self, file: Path) -> None:
        """Writes ``run.json``, without the address, which may hold credentials."""
        write_whole(file, json.dumps(asdict(self) | {"uri": ""}))

    def kept_in(self, directory: Path) -> "Run":
        """The same run, with what could not be sent yet in this folder of the run."""
        return replace(self, spool=str(directory.resolve() / SPOOL / self.run_id))


def address(storage: Path, given: str | None = None, before: str | None = None) -> str:
    """Where runs are tracked: as given, else MLFLOW_TRACKING_URI, else as ``before``, else an
    SQLite file in storage.

    Paths in it are absolute. Raises ValueError for a ``~`` that is nobody's home.
    """
    chosen = given or os.environ.get("MLFLOW_TRACKING_URI") or before
    return located(chosen or sqlite(storage.resolve() / "mlflow.db"))


def sqlite(file: Path) -> str:
    """The address of an SQLite file, whatever characters its folders' names hold."""
    return f"sqlite:///{quoted(file)}"


def quoted(file: Path) -> str:
    """A path as part of an address."""
    return str(file).translate(QUOTED)


def located(uri: str) -> str:
    """The address with an absolute path, if it names a file or folder: Ray's processes work in
    other folders.

    Raises ValueError for a database in memory, and for one of which the file is not clear.
    """
    if SQLITE.match(uri) and (not FILE.fullmatch(uri) or "mode=memory" in uri):
        raise ValueError(
            "MLflow's address must name an SQLite file, sqlite:////FOLDER/mlflow.db, with %3F for "
            f"a ? in it: one in memory would be lost; got {uri}"
        )
    if match := FILE.fullmatch(uri):
        before, path, after = match.groups()
        return f"{before}{quoted(expanded(Path(unquote(path))).absolute())}{after}"
    if uri.startswith("file:"):
        path = uri.removeprefix("file:")
        return uri if path.startswith("/") else expanded(Path(path)).absolute().as_uri()
    if "://" in uri or not uri or uri.partition(":")[0] in SERVICES:
        return uri
    return str(expanded(Path(uri)).absolute())


def relative(uri: str) -> bool:
    """Whether an address names a file or a folder by a path that is not absolute."""
    match = FILE.fullmatch(uri)
    path = match[2] if match else uri.removeprefix("file:")
    return not path.startswith("/") and located(uri) != uri


def database(uri: str) -> Path | None:
    """The SQLite file that an address names, if it names one."""
    match = FILE.fullmatch(uri)
    return Path(unquote(match[2])).resolve() if match else None


def ui_command(uri: str, storage: Path) -> str:
    """The command that shows the runs in a browser, without the credentials of an address.

    Files that the UI itself needs go to storage.
    """
    if uri.startswith(("http://", "https://")):
        return f"open {where(uri)}"
    files = shlex.quote(str(storage.resolve() / ARTIFACTS))
    store = shlex.quote(where(uri))
    # MLflow's four workers take half a minute to start on a small machine; one reader needs one.
    flags = f"--backend-store-uri {store} --artifacts-destination {files} --workers 1"
    program = "uv run mlflow" if "UV" in os.environ else "python -m mlflow"  # uv run sets it
    return f"{program} ui {flags} --host 127.0.0.1"
