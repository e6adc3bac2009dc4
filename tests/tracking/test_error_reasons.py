"""What MLflow says of itself reaches the user, with the way out, and without secrets."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.disks import fill, small_disk
from helpers.machine import free_ports

from vamf import tracking


def reported(uri: str) -> str:
    with pytest.raises(ValueError, match="MLflow must answer before training; ") as caught:
        tracking.check(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A web server that is not MLflow's, and says so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>You are not authenticated\n<p>")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "cannot be used (UNAUTHENTICATED: "),
        (403, "cannot be used (PERMISSION_DENIED: "),
        (502, "does not answer (too many 502 error responses)"),
        (200, "cannot be used (API request to endpoint was successful but the response body was "),
    ],
)
def test_what_a_server_says_is_printed(status: int, said: str) -> None:
    with answering(status) as place:
        line = reported(f"http://ann:hunter2@{place}")
    assert f"MLflow at http://{place} {said}" in line
    assert "hunter2" not in line
    assert ("MLFLOW_TRACKING_PASSWORD" in line) == (status == 401)


@pytest.mark.parametrize("there", [True, False])
def test_a_proxy_that_stands_between_is_named(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(403) as place:
        proxy = place if there else f"127.0.0.1:{free_ports(1)[0]}"
        monkeypatch.setenv("http_proxy", f"http://ann:hunter2@{proxy}")
        line = reported(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert line.endswith(f"; NO_PROXY=127.0.0.1 goes past the proxy http://{proxy}")
    assert "hunter2" not in line


def test_an_older_database_is_reported_with_the_way_out(tracking_uri: str, tmp_path: Path) -> None:
    file = shutil.copy(tracking_uri.removeprefix("sqlite:///"), tmp_path / "old.db")
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    line = reported(f"sqlite:///{file}")
    assert "cannot be used (Detected out-of-date database schema (found version 0584" in line
    assert f"; `mlflow db upgrade sqlite:///{file}` brings it up to date" in line


def test_a_missing_profile_and_a_refused_store_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    line = reported("databricks")
    assert "cannot be used (Reading Databricks credential configuration failed" in line
    assert "DATABRICKS_CONFIG_PROFILE" in line
    line = reported(f"file://{tmp_path}/files")
    assert "the filesystem tracking backend" in line.lower()
    assert line.endswith("; --tracking sqlite:////FOLDER/mlflow.db")


def test_a_full_disk_is_reported(tracking_uri: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        fill(disk / "filler")
        assert "cannot be used (OperationalError: database or disk is full)" in reported(
            f"sqlite:///{disk}/mlflow.db"
        )


IN_MEMORY = ["sqlite:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://"]


@pytest.mark.parametrize(
    "uri", [*IN_MEMORY, "sqlite:///file::memory:", "sqlite:///x?mode=memory", "sqlite:///a?b/x.db"]
)
def test_what_would_be_lost_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MLflow's address must name an SQLite file") as caught:
        tracking.address(tmp_path, uri)
    assert str(caught.value).endswith(f"; got {uri}")


def test_any_folder_can_hold_the_database(tmp_path: Path) -> None:
    folder = tmp_path / "a%20b?c=d #e {f} ü"
    folder.mkdir()
    uri = tracking.address(folder)
    run = tracking.create(uri, name="a", params={}, tags={}, spool=folder / "spool")
    file = tmp_path / "notes.txt"
    file.write_text("kept")
    tracker = tracking.Tracker(run)
    tracker.artifact(file)
    tracker.close("FINISHED")
    assert (folder / "mlflow.db").stat().st_size > 0
    assert [found.read_text() for found in folder.glob("mlartifacts/**/notes.txt")] == ["kept"]
    assert tracking.address(tmp_path, uri) == uri
    assert not list(tmp_path.glob("*.db")) and not (tmp_path / "a%20b").exists()
