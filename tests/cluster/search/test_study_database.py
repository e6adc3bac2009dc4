"""A study on a database server: a real PostgreSQL, if it is installed, and bad addresses."""

import os
import pickle
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import optuna
import pytest
from helpers.machine import free_ports, wait_until
from helpers.searching import begun, raced, without_ray
from helpers.tiny import TINY
from optuna.trial import TrialState

import vamf
from tune_spaces import constant
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner, study_database
from vamf.cluster.search.analysis.report import report
from vamf.cluster.search.extension import Extension
from vamf.cluster.search.space import Space
from vamf.cluster.search.study import open_study, requeue_unfinished
from vamf.errors import StorageUnusable

PASSWORD = "hush-hush-5417"


def program(name: str) -> str | None:
    """A program of PostgreSQL, which Debian keeps in a folder of each version."""
    places = [str(path.parent) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    return shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))


class Server(NamedTuple):
    """A PostgreSQL that can be stopped and started again."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"postgresql://vamf:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def shown(self) -> str:
        return f"postgresql://...@127.0.0.1:{self.port}/postgres"

    def run(self, name: str, *arguments: str) -> None:
        """As another user, as PostgreSQL refuses to be root."""
        user = "nobody" if os.getuid() == 0 else None
        executable = program(name)
        assert executable is not None
        log = (self.folder.parent / "log").open("ab")
        with log:
            subprocess.run(
                [executable, *arguments],
                check=True,
                stdout=log,
                stderr=log,
                user=user,
                cwd="/",
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/"},
            )

    def start(self) -> None:
        options = f"-k {self.folder.parent} -h 127.0.0.1 -p {self.port} -c fsync=off"
        self.run("pg_ctl", "-D", str(self.folder), "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder), "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if program("initdb") is None or program("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        folder = Path(name)
        password = folder / "password"
        password.write_text(PASSWORD)
        found = Server(folder / "data", *free_ports(1))
        if os.getuid() == 0:
            for path in (folder, password):
                shutil.chown(path, "nobody")
        identity = [
            "-U",
            "vamf",
            "--pwfile",
            str(password),
            "--auth",
            "scram-sha-256",
            "-E",
            "UTF8",
        ]
        found.run("initdb", "-D", str(found.folder), "-N", "-E", "UTF8", *identity)
        found.start()
        yield found
        found.stop()


@pytest.fixture(scope="module")
def mariadb() -> Iterator[str]:
    """The address of a MariaDB, reached by pymysql."""
    pytest.importorskip("pymysql", reason="pymysql is not installed")
    if not shutil.which("mariadbd", path="/usr/sbin:/usr/bin"):
        pytest.skip("MariaDB is not installed (Debian's package mariadb-server)")
    with tempfile.TemporaryDirectory() as name:
        folder, (port,) = Path(name), free_ports(1)
        user = "nobody" if os.getuid() == 0 else None
        if user:
            shutil.chown(folder, user)
        start = folder / "start.sql"
        start.write_text(
            f"CREATE DATABASE IF NOT EXISTS studies; CREATE USER vamf@'127.0.0.1' IDENTIFIED BY "
            f"'{PASSWORD}'; GRANT ALL ON studies.* TO vamf@'127.0.0.1';\n".replace("; ", ";\n")
        )
        data = ["--no-defaults", f"--datadir={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            install = ["mariadb-install-db", *data, "--skip-test-db"]
            subprocess.run(install, check=True, stdout=log, stderr=log, user=user, cwd="/")
            own = [f"--socket={folder / 'socket'}", f"--init-file={start}", "--skip-name-resolve"]
            own += [f"--port={port}", "--bind-address=127.0.0.1"]
            process = subprocess.Popen(
                ["/usr/sbin/mariadbd", *data, *own], stdout=log, stderr=log, user=user, cwd="/"
            )
        address = f"mysql+pymysql://vamf:{PASSWORD}@127.0.0.1:{port}/studies"
        try:
            wait_until(
                lambda: answers(address) or process.poll() is not None, "MariaDB's start", 60
            )
            assert process.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    try:
        study_database.require_free(address, "none")
    except ValueError:
        return False
    return True


def plan(trials: int) -> search_runner.Plan:
    return search_runner.Plan(cast(Space, constant), "test", trials, 1, preset="tiny")


@pytest.mark.slow
def test_a_search_on_a_server_is_seen_by_others_and_goes_on(
    server: Server,
    local_ray: None,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(study_database.VARIABLE, server.address)
    space, directory = cast(Space, constant), tmp_path / "shared"
    address = study_database.address(None)
    sweep = search_runner.new(
        plan(2), TINY, directory, tracking_uri, Scaling(gpus=0), study=address
    )
    found, files = search_runner.run(space, sweep)
    assert len(found.complete) == 2 and not (directory / "study.db").exists()
    assert f"study      {server.shown}" in report(sweep, found, files)

    # Others reach it by its address alone.
    seen = optuna.load_study(study_name="shared", storage=server.address)
    assert [trial.state for trial in seen.trials] == [TrialState.COMPLETE] * 2
    for trial, record in zip(seen.trials, found.trials, strict=True):
        assert trial.values == [record.metrics[name].value for name in sweep.objectives]

    # It goes on after the server was restarted; a lost server ends it with one line.
    server.stop()
    with pytest.raises(ValueError, match=r"study, postgresql://...@.*, must be readable; got"):
        search_runner.resumed(directory, tracking_uri)
    assert len(vamf.results(directory).results.complete) == 2
    assert "neither importances nor slices: the search's study, " in capfd.readouterr().err
    with pytest.raises(StorageUnusable, match="the search's study cannot be used: "):
        search_runner.run(space, sweep)
    server.start()
    extension = Extension(trials=3)
    again = search_runner.resumed(directory, tracking_uri, extension)
    assert len(search_runner.run(space, again)[0].complete) == 3
    assert len(optuna.load_study(study_name="shared", storage=server.address).trials) == 3

    # The password is nowhere.
    written = [path for path in directory.rglob("*") if path.is_file()]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]
    said = capfd.readouterr()
    assert PASSWORD not in said.out + said.err + repr(sweep)

    # Another search cannot take its name, and its folder not another's study.
    other = tmp_path / "other" / "shared"
    with pytest.raises(ValueError, match="has a study shared already; choose another --name"):
        search_runner.new(plan(2), TINY, other, tracking_uri, Scaling(gpus=0), study=address)
    optuna.load_study(study_name="shared", storage=server.address).set_user_attr(
        study_database.OWNER, "another"
    )
    with pytest.raises(
        ValueError, match=r"must be that of the search with MLflow's run .* another"
    ):
        search_runner.resumed(directory, tracking_uri)


@pytest.mark.slow
def test_the_password_may_be_where_postgresql_looks_for_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = study_database.without_password(server.address)
    with pytest.raises(ValueError, match=r"must be readable; got .*no password supplied$"):
        study_database.require_free(address, "a")
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{server.port}:*:vamf:{PASSWORD}\n")
    file.chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSFILE", str(file))  # by default ~/.pgpass
        study_database.require_free(address, "a")
    study_database._on_a_server.cache_clear()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    study_database.require_free(address, "a")


@pytest.mark.slow
@pytest.mark.parametrize("database", ["server", "mariadb"])
def test_drivers_share_the_trials_of_a_study_on_a_server(
    database: str,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    found = request.getfixturevalue(database)
    without_ray(monkeypatch)
    sweep = begun(tmp_path / database, tracking_uri, trials=12)
    sweep = replace(sweep, study=found if isinstance(found, str) else found.address)
    started, last = raced(sweep, drivers=4)
    assert sorted(started) == list(range(12)) and last.count(True) == 1
    states = [trial.state for trial in open_study(sweep).trials]
    assert states == [TrialState.COMPLETE] * 12
    names = {trial.user_attrs["driver"] for trial in open_study(sweep).trials}
    assert len(names) == 4
    study = open_study(sweep)  # what a driver leaves that has died
    study.ask()
    assert requeue_unfinished(sweep) == [12]
    assert study.ask().number == 12


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("study.db", "study.db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("https://me:hush-hush@host/db", "https://...@host/db"),
        ("postgresql", "postgresql"),
    ],
)
def test_what_is_no_server_is_refused(address: str, shown: str) -> None:
    expected = r"a study's address must be postgresql://USER@HOST/NAME or mysql://USER@HOST/NAME; "
    with pytest.raises(ValueError, match=f"^{expected}got {shown}$"):
        study_database.address(address)


@pytest.mark.parametrize("password", ["hush/5417", "hush@5417", "hush#5417@/"])
def test_a_password_that_would_be_shown_is_refused(password: str) -> None:
    expected = (
        "user and password in a study's address must have special characters escaped, such as %2F "
        "for / and %40 for @; got postgresql://...@host/db"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        study_database.address(f"postgresql://me:{password}@host/db")
    study_database.address("postgresql://me:hush%2F%40@host/db?application_name=a")


def test_a_missing_driver_is_named_in_one_line() -> None:
    expected = r"^a study at postgresql\+pg8000://\.\.\. needs a Python driver, such as "
    with pytest.raises(ValueError, match=expected):
        study_database.require_free("postgresql+pg8000://me:hush-hush@127.0.0.1/db", "a")


def test_the_environment_names_the_database_of_new_searches_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert study_database.address(None) == ""
    monkeypatch.setenv(study_database.VARIABLE, "postgresql://me:a@host/db")
    assert study_database.address(None) == "postgresql://me:a@host/db"
    assert study_database.address("mysql://host/db") == "mysql://host/db"
    again = study_database.address_again
    assert again(None, "") == ""  # a search with a file keeps it
    assert again(None, "postgresql://me@host/db") == "postgresql://me:a@host/db"
    with pytest.raises(ValueError, match="keeps its study in its folder: it takes no --study"):
        again("postgresql://me@host/db", "")
    monkeypatch.delenv(study_database.VARIABLE)
    assert again(None, "postgresql://me@host/db") == "postgresql://me@host/db"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ""),
        ("postgresql://me:secret@host:5/db", "postgresql://me@host:5/db"),
        (
            "postgresql://host/db?password=secret&sslmode=require",
            "postgresql://host/db?sslmode=require",
        ),
        ("mysql+pymysql://me@host/db", "mysql+pymysql://me@host/db"),
    ],
)
def test_an_address_is_kept_without_its_password(address: str, expected: str) -> None:
    assert study_database.without_password(address) == expected


def test_a_search_with_a_file_takes_no_server(tracking_uri: str, tmp_path: Path) -> None:
    sweep = begun(tmp_path / "s", tracking_uri)
    with pytest.raises(ValueError, match="it takes no --study"):
        search_runner.resumed(sweep.directory, tracking_uri, study="postgresql://host/db")


def test_ray_keeps_the_database_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(study_database.Database):
        def __init__(self, address: str) -> None:
            self.url = address

    kept = Fake("postgresql://me:secret@host/db").__reduce__()
    assert kept == (study_database.Database, ("postgresql://me@host/db",))
    assert b"secret" not in pickle.dumps(kept[1])
