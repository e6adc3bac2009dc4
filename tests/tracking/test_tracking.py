"""Runs of MLflow, on a real server and a real SQLite file, which come and go."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.mlflow_server import Server
from mlflow import MlflowClient
from PIL import Image

from vamf import tracking
from vamf.compat import mlflow_view
from vamf.tracking import Run, Tracker, event_sender
from vamf.tracking.event_queue import Event, EventQueue


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def database(folder: Path) -> str:
    """An SQLite file, by way of which runs are logged without a server."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracking.check(uri)
    return uri


@pytest.fixture(scope="module")
def server(folder: Path, database: str) -> Iterator[Server]:
    """A server on the same SQLite file."""
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "RETRY_S", 0.1)
    monkeypatch.setattr("vamf.tracking.tracker.CLOSE_S", 0.2)
    monkeypatch.setattr("vamf.tracking.run_creation.CREATE_S", 0.2)


def new_run(uri: str, spool: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {"name": "s001", "params": {"beta": 0.5}, "tags": {}}
    kind = "on-sqlite" if uri.startswith("sqlite") else "vamf"
    return tracking.create(uri, experiment=kind, spool=spool, **settings | changes)


def steps(run: Run, key: str) -> list[int]:
    """The steps of a curve, in the order in which MLflow received them."""
    return [m.step for m in MlflowClient(run.uri).get_metric_history(run.run_id, key)]


def image_steps(run: Run) -> list[int]:
    files = [f.path for f in MlflowClient(run.uri).list_artifacts(run.run_id, "images")]
    return sorted(int(f.split("+step+")[1].split("+")[0]) for f in files if f.endswith(".png"))


def png(path: Path) -> Path:
    Image.new("RGB", (32, 32), (200, 30, 30)).save(path)
    return path


def nowhere(spool: Path, port: int | None = None) -> Run:
    uri = f"http://ann:hunter2@127.0.0.1:{port or free_port()}"
    return Run(uri=uri, run_id="0" * 32, experiment_id="1", spool=str(spool))


def test_what_is_logged_is_readable(server: Server, tmp_path: Path) -> None:
    many = {f"p{i}": i for i in range(150)} | {"layers": "x" * 7000}
    run = new_run(server.uri, tmp_path, params=many, tags={"git": "abc"})
    tracker = Tracker(run)
    tracker.metrics({"loss/train": 0.25, "eval/fid": float("nan")}, step=1)
    tracker.metrics({"loss/train": float("inf")}, step=2)
    tracker.image(png(tmp_path / "a.png"), "samples", step=2)
    tracker.artifact(png(tmp_path / "b.png"), "plots")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "c.txt").write_text("c")
    tracker.artifact(tmp_path / "notes")
    tracker.tags({"picked": "yes"})
    tracker.close("FINISHED")

    client = MlflowClient(server.uri)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "s001"
    assert len(found.data.params) == 151
    assert found.data.params["p149"] == "149"
    assert len(found.data.params["layers"]) == 6000
    assert found.data.tags["git"] == "abc"
    assert found.data.tags["picked"] == "yes"
    assert found.data.tags["mlflow.loggedImages"] == "True"
    assert steps(run, "loss/train") == [1, 2]
    assert steps(run, "eval/fid") == [1]
    assert image_steps(run) == [2]
    full = json.loads(
        Path(client.download_artifacts(run.run_id, "params_in_full.json")).read_text()
    )
    assert full == {"layers": "x" * 7000}
    assert [f.path for f in client.list_artifacts(run.run_id, "plots")] == ["plots/b.png"]
    assert [f.path for f in client.list_artifacts(run.run_id, "notes")] == ["notes/c.txt"]
    kind = client.get_experiment(run.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


def test_a_child_run_names_its_parent(server: Server, tmp_path: Path) -> None:
    parent = new_run(server.uri, tmp_path)
    child = new_run(server.uri, tmp_path, parent=parent)
    tags = MlflowClient(server.uri).get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id
    assert child.experiment_id == parent.experiment_id
    assert child.spool != parent.spool


@pytest.mark.slow  # a real server
def test_a_restarted_worker_adds_only_new_steps(server: Server, tmp_path: Path) -> None:
    run = new_run(server.uri, tmp_path)
    picture = png(tmp_path / "a.png")
    first = Tracker(run)
    for step in range(1, 61):
        first.metrics({"loss/train": 1 / step, "grad/norm": 2.0}, step)
    first.image(picture, "eval/samples", 20)
    first.image(picture, "eval/samples", 60)
    second = Tracker(run)
    for step in range(41, 81):
        second.metrics({"loss/train": 1 / step, "grad/norm": 2.0}, step)
    second.image(picture, "eval/samples", 60)
    second.image(picture, "eval/samples", 80)
    second.close("FINISHED")
    assert steps(run, "loss/train") == list(range(1, 81))
    assert steps(run, "grad/norm") == list(range(1, 81))
    assert image_steps(run) == [20, 60, 80]


@pytest.mark.slow
def test_a_server_that_dies_costs_no_point(
    server: Server, tmp_path: Path, impatient: None, capfd: pytest.CaptureFixture[str]
) -> None:
    goes_on, ends = new_run(server.uri, tmp_path / "a"), new_run(server.uri, tmp_path / "b")
    tracker, other = Tracker(goes_on), Tracker(ends)
    for step in range(1, 11):
        tracker.metrics({"loss/train": 0.5}, step)
    server.kill()
    try:
        for step in range(11, 31):
            tracker.metrics({"loss/train": 0.5}, step)
        fleeting = png(tmp_path / "a.png")
        tracker.image(fleeting, "samples", 30)
        tracker.artifact(fleeting, "plots")
        fleeting.unlink()
        other.metrics({"loss/train": 0.5}, 1)
        other.close("FAILED", "out of memory")
        # A worker killed now, and restarted from step 20 while the server is still away.
        tracker = Tracker(goes_on)
        for step in range(21, 36):
            tracker.metrics({"loss/train": 0.5}, step)
        assert not tracker.flush()
    finally:
        server.start()
    tracker.metrics({"loss/train": 0.5}, 36)
    tracker.close("FINISHED")
    assert steps(goes_on, "loss/train") == list(range(1, 37))
    assert image_steps(goes_on) == [30]
    plots = MlflowClient(server.uri).list_artifacts(goes_on.run_id, "plots")
    assert [f.path for f in plots] == ["plots/a.png"]
    assert not list(Path(goes_on.spool).glob("files/*"))
    said = capfd.readouterr().err.splitlines()
    assert sum("does not answer; training continues" in line for line in said) == 3  # one a tracker
    assert sum("is back; what was kept" in line for line in said) == 1
    assert len(said) == 5, said

    assert steps(ends, "loss/train") == []
    assert tracking.resend(tmp_path / "b") == (2, 0, 0)  # sent, refused, left: a point, its end
    assert steps(ends, "loss/train") == [1]
    found = MlflowClient(server.uri).get_run(ends.run_id)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "out of memory")


def test_an_address_without_a_server_is_one_line() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"MLflow at http://127.0.0.1:\d+ does not ans") as caught:
        tracking.check(nowhere(Path("unused")).uri)
    assert time.monotonic() - started < 10
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = nowhere(tmp_path, silent.getsockname()[1])
        with pytest.raises(ValueError, match="does not answer"):
            tracking.check(run.uri)
        tracker = Tracker(run)
        started = time.monotonic()
        for step in range(100):
            tracker.metrics({"loss/train": 1.0}, step)
        # One attempt of a second, and none for the next ten.
        assert time.monotonic() - started < 5


def test_training_goes_on_without_a_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vamf.tracking.run_creation.CREATE_S", 0.2)
    tracker = Tracker(nowhere(tmp_path))
    started = time.monotonic()
    for step in range(1000):
        tracker.metrics({"loss/train": 1.0}, step)
    assert time.monotonic() - started < 5
    out, said = capfd.readouterr()
    assert out == ""
    assert said.count("\n") == 1, said
    assert str(tmp_path) in said
    assert "hunter2" not in said
    assert not any("hunter2" in file.read_text() for file in tmp_path.iterdir())
    assert not tracker.flush()
    with pytest.raises(ValueError, match=r"run 's001' was not created; MLflow at"):
        new_run(nowhere(tmp_path).uri, tmp_path)


def test_a_spool_that_cannot_be_written_is_no_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    tracker = Tracker(nowhere(tmp_path / "file" / "spool"))
    tracker.metrics({"loss/train": 1.0}, 1)
    tracker.image(png(tmp_path / "a.png"), "samples", 1)
    assert "metrics may be lost" in capfd.readouterr().err


def test_what_cannot_be_queued_is_sent_at_once(
    database: str, tmp_path: Path, impatient: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk of the queue is full, or gone; the server is not."""
    run = new_run(database, tmp_path)
    (tmp_path / "file").write_text("a file where a folder should be")
    tracker = Tracker(replace(run, spool=str(tmp_path / "file" / "spool")))
    for step in (1, 2, 3):
        tracker.metrics({"loss/train": 0.5}, step)
    tracker.close("FAILED", "no space left")
    assert steps(run, "loss/train") == [1, 2, 3]
    found = MlflowClient(database).get_run(run.run_id)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "no space left")


def test_how_a_run_ended_and_that_it_goes_on(database: str, tmp_path: Path) -> None:
    run, client = new_run(database, tmp_path), MlflowClient(database)
    Tracker(run).close("FAILED", "CUDA out of memory")
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "CUDA out of memory")
    assert found.info.end_time is not None
    tracking.rejoin(run)
    found = client.get_run(run.run_id)
    assert found.info.status == "RUNNING"
    assert "error" not in found.data.tags


def test_what_is_refused_does_not_hold_up_the_rest(
    database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run(database, tmp_path)
    spool = EventQueue(Path(run.spool))
    for step in range(3):
        values = {"loss/train": 1.0} if step != 1 else {"loss(β)": 1.0}
        spool.append(Event(kind="metrics", data={"values": values, "step": step}))
    tracker = Tracker(run)
    (tmp_path / "no.png").write_text("not an image")
    tracker.image(tmp_path / "no.png", "samples", 1)
    tracker.artifact(tmp_path / "vanished.txt")
    tracker.metrics({"loss/train": 1.0}, 3)
    assert tracker.flush()
    assert steps(run, "loss/train") == [0, 2, 3]
    rejected = (Path(run.spool) / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in rejected] == ["metrics", "image", "artifact"]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3
    assert "MLflow refused metrics loss(β) (INVALID_PARAMETER_VALUE:" in said[0]


def test_a_deleted_experiment_is_one_line(database: str, tmp_path: Path) -> None:
    run = new_run(database, tmp_path)
    MlflowClient(database).delete_experiment(run.experiment_id)
    try:
        with pytest.raises(ValueError, match="must not be deleted; got"):
            new_run(database, tmp_path)
    finally:
        MlflowClient(database).restore_experiment(run.experiment_id)


def test_a_locked_sqlite_file_is_left_for_later(
    database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run(database, tmp_path)
    tracker = Tracker(run)
    tracker.metrics({"loss/train": 1.0}, 1)
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        tracker.metrics({"loss/train": 1.0}, 2)
        tracker.metrics({"loss/train": 1.0}, 3)
        assert time.monotonic() - started < 5  # where MLflow alone waits 20 s for each
        assert "database is locked" in capfd.readouterr().err
    assert tracker.flush()
    assert steps(run, "loss/train") == [1, 2, 3]


WRITER = """
import sys
from pathlib import Path
from vamf import tracking
uri, spool, name = sys.argv[1:]
run = tracking.create(uri, name=name, params={}, tags={}, spool=Path(spool))
tracker = tracking.Tracker(run)
for step in range(100):
    tracker.metrics({"loss/train": 1.0}, step)
tracker.close("FINISHED")
"""


@pytest.mark.slow
def test_two_processes_create_and_fill_one_sqlite_file(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'fresh.db'}"
    command = [sys.executable, "-c", WRITER, uri, str(tmp_path / "spool")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    writers = [subprocess.Popen([*command, name], **pipes) for name in "ab"]
    said = [writer.communicate(timeout=120)[0] for writer in writers]
    assert said == ["", ""]
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "vamf"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["a", "b"]
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "loss/train")
        assert [point.step for point in history] == list(range(100))


def test_a_spool_survives_a_process_killed_in_mid_line(tmp_path: Path) -> None:
    spool = EventQueue(tmp_path)
    for step in range(2):
        spool.append(Event(kind="metrics", data={"step": step}))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "metr')
    spool = EventQueue(tmp_path)
    spool.append(Event(kind="metrics", data={"step": 2}))
    assert [queued.event.data["step"] for queued in spool.peek()] == [0, 1, 2]
    spool.acknowledge(spool.peek()[0].end)
    assert [queued.event.data["step"] for queued in EventQueue(tmp_path).peek()] == [1, 2]
    spool.acknowledge(spool.peek()[-1].end)
    assert spool.empty()
    assert (tmp_path / "events.jsonl").stat().st_size == 0


def test_only_one_process_sends_at_a_time(tmp_path: Path) -> None:
    first, second = EventQueue(tmp_path), EventQueue(tmp_path)
    with first.sender() as (mine, changed), second.sender() as (others, _):
        assert (mine, changed, others) == (True, True, False)
    with first.sender() as (_, changed):
        assert not changed
    with second.sender() as (_, changed):
        assert changed


def test_addresses_and_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking.address(tmp_path)
    assert uri == f"sqlite:////{str(tmp_path)[1:]}/mlflow.db"
    assert f"mlflow ui --backend-store-uri {uri} " in tracking.ui_command(uri, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:hunter2@mlflow.example")
    uri = tracking.address(tmp_path)
    assert tracking.ui_command(uri, tmp_path) == "open https://mlflow.example"


def test_the_command_is_one_that_the_user_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def program() -> str:
        light, _, rest = tracking.ui_command("sqlite:////a/mlflow.db", tmp_path).partition(" ")
        assert light == "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
        return rest.partition(" ui --backend-store-uri ")[0]

    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # in an active environment
    assert program() == "python -m mlflow"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == f"{sys.executable} -m mlflow"
    monkeypatch.setenv("UV", "/usr/bin/uv")  # as `uv run` sets it
    assert program() == "uv run mlflow"


def test_a_page_of_the_ui_is_named_with_the_command(tmp_path: Path) -> None:
    command, then = tracking.ui_command("sqlite:////a/b.db", tmp_path, "#/x?a&b").splitlines()
    assert command == tracking.ui_command("sqlite:////a/b.db", tmp_path)
    assert then.strip() == "then http://127.0.0.1:5000/#/x?a&b"
    server = "https://ann:hunter2@mlflow.example/"
    assert tracking.ui_command(server, tmp_path, "#/x?a&b") == (
        "open 'https://mlflow.example/#/x?a&b'"
    )


def test_a_view_and_a_data_set_are_saved_by_a_server(server: Server, tmp_path: Path) -> None:
    run = new_run(server.uri, tmp_path)
    tracker = Tracker(run)
    tracker.view("s", {"compareRunCharts": []})
    for _ in range(2):  # as after a restart
        tracker.dataset("Digits", "abc", '{"kind": "Digits"}')
    client = MlflowClient(server.uri)
    tags = client.get_experiment(run.experiment_id).tags
    saved = tags[f"mlflow.sharedViewState.{run.run_id}"]
    assert mlflow_view.decoded(saved) == ("s", {"compareRunCharts": []})
    assert tracking.view_path(run).endswith(f"viewStateShareKey={run.run_id}")
    (data,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("Digits", "abc")
    assert "eval/loss_variance" in tags["mlflow.note.content"]


def test_a_users_description_of_an_experiment_stays(database: str, tmp_path: Path) -> None:
    client = MlflowClient(database)
    note = {"mlflow.note.content": "my own"}
    mine = client.create_experiment("mine", (tmp_path / "files").as_uri(), note)
    for _ in range(2):
        run = tracking.create(
            database, experiment="mine", name="a", params={}, tags={}, spool=tmp_path
        )
    tags = client.get_experiment(run.experiment_id).tags
    assert run.experiment_id == mine
    assert tags["mlflow.note.content"] == "my own"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def experiment_of(uri: str, run: Run) -> tuple[str, str]:
    """The name of a run's experiment, and where its files are."""
    client = MlflowClient(uri)
    found = client.get_experiment(client.get_run(run.run_id).info.experiment_id)
    return found.name, found.artifact_location


def test_the_experiment_is_the_one_that_the_environment_names(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Any = {"name": "a", "params": {}, "tags": {}, "spool": tmp_path / "spool"}
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Users/ann/digits")
    parent = tracking.create(tracking_uri, **given)
    name, files = experiment_of(tracking_uri, parent)
    assert name == "/Users/ann/digits"
    assert files.startswith(Path(tracking_uri.removeprefix("sqlite:///")).parent.as_uri())
    assert (
        experiment_of(tracking_uri, tracking.create(tracking_uri, **given, experiment="b"))[0]
        == "b"
    )
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")  # as on another node
    child = tracking.create(tracking_uri, **given, parent=parent)
    assert child.experiment_id == parent.experiment_id
    assert experiment_of(tracking_uri, tracking.create(tracking_uri, **given))[0] == "vamf"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", parent.experiment_id)
    assert tracking.create(tracking_uri, **given).experiment_id == parent.experiment_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "987654")
    with pytest.raises(ValueError, match="987654"):
        tracking.create(tracking_uri, **given)


def test_an_unusable_sqlite_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(ValueError, match="not a database"):
        tracking.check(tracking.address(tmp_path))


def test_a_spool_folder_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold a spool; got"):
        tracking.resend(tmp_path)
