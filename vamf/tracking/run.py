"""An MLflow run as a value, and the addresses of tracking servers."""

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from vamf.compat.mlflow import WITHOUT_JOBS
from vamf.files import expanded, write_whole
from vamf.redact import without_credentials
from vamf.run_layout import ARTIFACTS, DATABASE, SPOOL
from vamf.store import StoragePath, Store

FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!:memory:|file:)([^?]+)(\?[^/?]*|)")
"""The address of an SQLite file, in three parts; one in memory is none."""

SQLITE = re.compile(r"sqlite(\+\w+)?:")
"""The prefix of SQLite's addresses, also of those without a file."""

QUOTED = str.maketrans({character: f"%{ord(character):02X}" for character in "%?{}"})
"""Characters that a file's address must escape: two for SQLAlchemy, braces for Optuna."""

UI = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` listens."""

SERVICES = ("databricks", "databricks-uc", "uc")
"""Addresses that name a service without ``://``, alone or before a colon."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of MLflow as a value that travels to workers."""

    uri: str = field(repr=False)
    """The address of the tracking server or database; it may hold credentials."""
    run_id: str
    experiment_id: str
    spool: str
    """The folder of the event queue, on storage that every worker sees."""

    @property
    def directory(self) -> Path:
        """The run's folder when ``spool`` was written; it may have been moved since."""
        return Path(self.spool).parents[1]

    @classmethod
    def load(cls, file: Path, uri: str) -> "Run":
        """Reads ``run.json`` in the run's present folder; ``uri`` replaces the address."""
        return cls(**json.loads(file.read_text()) | {"uri": uri}).kept_in(file.parent)

    def save(self, file: Path) -> None:
        """Writes ``run.json``, without the address, which may hold credentials."""
        write_whole(file, json.dumps(asdict(self) | {"uri": ""}))

    def kept_in(self, directory: Path) -> "Run":
        """The same run, with its event queue in this folder of the run."""
        return replace(self, spool=str(directory.resolve() / SPOOL / self.run_id))


def files_beside(storage: StoragePath) -> Path:
    """The folder for MLflow's files without a server: a database cannot be in a store."""
    return Path("runs").resolve() if isinstance(storage, Store) else storage


def address(storage: Path, given: str | None = None, before: str | None = None) -> str:
    """The tracking address: as given, else MLFLOW_TRACKING_URI, else as ``before``, else an
    SQLite file in storage.

    Paths in it are absolute. Raises ValueError if ``~`` is not a user's home.
    """
    chosen = given or os.environ.get("MLFLOW_TRACKING_URI") or before
    return located(chosen or sqlite(storage.resolve() / DATABASE))


def sqlite(file: Path) -> str:
    """The address of an SQLite file, with special characters escaped."""
    return f"sqlite:///{quoted(file)}"


def quoted(file: Path) -> str:
    """A path with the special characters of an address escaped."""
    return str(file).translate(QUOTED)


def located(uri: str) -> str:
    """The address with an absolute path, if it names a file or folder: Ray's processes have
    other working folders.

    Raises ValueError for a database in memory, and for one whose file is ambiguous.
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


def page_address(uri: str, page: str) -> str:
    """The address of a page of the UI, without credentials: the server's, or `mlflow ui`'s here."""
    ui = without_credentials(uri) if uri.startswith(("http://", "https://")) else UI
    return f"{ui.rstrip('/')}/{page}"


def ui_command(uri: str, storage: Path, page: str = "") -> str:
    """The command that shows the runs, or a page of the UI, in a browser.

    Without the credentials of an address. Files that the UI itself needs go to storage. A page of a
    UI that is yet to be started is in a second line.
    """
    if uri.startswith(("http://", "https://")):
        return f"open '{page_address(uri, page)}'" if page else f"open {without_credentials(uri)}"
    files = shlex.quote(str(storage.resolve() / ARTIFACTS))
    store = shlex.quote(without_credentials(uri))
    # MLflow's four workers take half a minute to start on a small machine; one reader needs one.
    flags = f"--backend-store-uri {store} --artifacts-destination {files} --workers 1"
    command = f"{WITHOUT_JOBS} {_program()} ui {flags} --host 127.0.0.1"
    return f"{command}\n           then {page_address(uri, page)}" if page else command


def _program() -> str:
    """MLflow's program as a user's shell finds it: by uv, in the active environment, or nowhere."""
    if "UV" in os.environ:  # `uv run` sets it
        return "uv run mlflow"
    active = shutil.which("python")
    own = active is not None and Path(active).parent == Path(sys.executable).parent
    return f"{'python' if own else shlex.quote(sys.executable)} -m mlflow"
