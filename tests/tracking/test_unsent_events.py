"""What MLflow missed is sent by a command, and an answer that comes late makes no second run."""

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
from helpers.mlflow_server import Server
from helpers.tiny import TINY
from mlflow import MlflowClient

from jobs import resend
from vamf import tracking
from vamf.cluster.train.tracked_run import create, new
from vamf.tracking import Run, run_creation
from vamf.tracking.event_queue import Event, EventQueue


def waiting(run: Run, *steps: int) -> None:
    for step in steps:
        data = {"values": {"loss/train": 0.5}, "step": step}
        EventQueue(Path(run.spool)).append(Event(kind="metrics", data=data))


def steps(run: Run) -> list[int]:
    points = MlflowClient(run.uri).get_metric_history(run.run_id, "loss/train")
    return [point.step for point in points]


@pytest.fixture
def runs(tracking_uri: str, tmp_path: Path) -> tuple[Run, Run]:
    """One by itself and one of a search, in a storage, with 3 and 1 events that wait."""
    folders = (tmp_path / "runs" / "a", tmp_path / "runs" / "s" / "t000" / "seed_0")
    one, other = (create(TINY, new(folder, tracking_uri, "digits")) for folder in folders)
    waiting(one, 1, 2, 3)
    waiting(other, 1)
    return one, other


@pytest.mark.parametrize("place", ["a", "a/spool", "", "s"])
def test_what_waits_is_sent_from_any_folder(
    place: str, runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "runs" / "a" / "run.json"
    before = marker.read_bytes()
    expected = {"a": (3, 0), "a/spool": (3, 0), "": (3, 1), "s": (0, 1)}[place]
    resend.main([str(tmp_path / "runs" / place)])
    assert capsys.readouterr().out == f"events sent: {sum(expected)}\n"
    assert tuple(len(steps(run)) for run in runs) == expected
    assert marker.read_bytes() == before
    resend.main([str(tmp_path / "runs" / place)])
    assert capsys.readouterr().out == "nothing was waiting to be sent\n"


def test_what_cannot_be_sent_is_not_reported_as_sent(
    runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for arguments, line in (
        (
            [str(tmp_path), "--tracking", away],
            f"MLflow must answer before sending; MLflow at {away}",
        ),
        ([str(tmp_path / "none")], "the folder of a run or a search must hold a spool; got "),
    ):
        with pytest.raises(SystemExit) as ended:
            resend.main(arguments)
        assert ended.value.code == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"error: {line}")
    resend.main([str(tmp_path)])
    assert steps(runs[0]) == [1, 2, 3]


def test_what_mlflow_refuses_is_reported(
    runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, queue = {"values": {"loss(β)": 0.5}, "step": 1}, EventQueue(Path(runs[1].spool))
    for folder, sent in (("runs", 4), ("runs/s", 0)):
        queue.append(Event(kind="metrics", data=data))
        with pytest.raises(SystemExit) as ended:
            resend.main([str(tmp_path / folder)])
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert out == f"events sent: {sent}\n"
        assert err.splitlines()[-1] == "error: events that MLflow refused: 1"


def test_a_queue_of_a_moved_storage_is_sent_to_the_database_beside_it(
    tracking_uri: str, tmp_path: Path
) -> None:
    database = tmp_path / "runs" / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(Path(tracking_uri.removeprefix("sqlite:///")).read_bytes())
    run = create(TINY, new(tmp_path / "runs" / "a", f"sqlite:///{database}", "digits"))
    waiting(run, 1)
    (tmp_path / "runs").rename(tmp_path / "now")
    assert tracking.resend(tmp_path / "now").sent == 1
    assert not (tmp_path / "runs").exists()
    now = f"sqlite:///{tmp_path / 'now' / 'mlflow.db'}"
    assert len(MlflowClient(now).get_metric_history(run.run_id, "loss/train")) == 1


class Slow:
    """Stands before a server, and keeps the first request for a new run waiting.

    Either what it asks for, or only the answer, comes ``late`` seconds later.
    """

    def __init__(self, server: Server, late: float, made: str) -> None:
        self.late, self.made, self.asked = late, made, 0
        outer, pause = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                first = self.path.endswith("runs/create") and not outer.asked
                outer.asked += self.path.endswith("runs/create")
                if first and outer.made == "late":
                    pause.wait(outer.late)
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                request = urllib.request.Request(
                    server.uri + self.path, body or None, headers, method=self.command
                )
                try:
                    with urllib.request.urlopen(request) as answer:
                        status, said = answer.status, answer.read()
                except HTTPError as error:
                    status, said = error.code, error.read()
                if first and outer.made == "at once":
                    pause.wait(outer.late)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_POST = do_GET

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # it hung up
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    (server.folder / "mlflow.db").write_bytes(database.read_bytes())
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("made", ["at once", "late"])
def test_an_answer_that_comes_late_makes_no_second_run(
    made: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    slow = Slow(server, 4.0, made)
    run = tracking.create(
        slow.uri, experiment=made, name="a", params={"b": 1}, tags={}, spool=tmp_path
    )
    slow.http.shutdown()
    client = MlflowClient(server.uri)
    (found,) = client.search_runs([run.experiment_id])
    assert (found.info.run_id, found.data.params) == (run.run_id, {"b": "1"})


class Fickle:
    """A client whose first request makes its run only after the second one has."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.runs: list[str] = []
        self.asked: list[float] = []
        self.now = now

    def search_runs(self, *_: object, **__: object) -> list[Any]:
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in self.runs]

    def create_run(self, *_: object, **__: object) -> Any:
        self.asked.append(self.now())
        if len(self.asked) == 1:
            raise TimeoutError("no answer")
        self.runs += ["late", "mine"]  # in the order in which they began
        return SimpleNamespace(info=SimpleNamespace(run_id="mine"))

    def delete_run(self, run: str) -> None:
        self.runs.remove(run)


def test_of_two_runs_that_were_made_all_the_same_one_is_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(run_creation.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run_creation.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    client = Fickle(lambda: clock[0])
    make = run_creation.create_or_find(lambda: client, "1", "a", {run_creation.KEY: "k"})
    assert run_creation.retried("http://x", make, None) == "late"
    assert client.runs == ["late"]
    assert client.asked[1] - client.asked[0] >= run_creation.LOOK_S  # it was looked for in between


def test_a_run_of_one_key_is_made_once(tracking_uri: str, tmp_path: Path) -> None:
    """As by a process that died before it could write down which run it had made."""
    given: dict[str, Any] = {"name": "a", "params": {"b": 1}, "tags": {}, "spool": tmp_path}
    first = tracking.create(tracking_uri, **given, key="one")
    assert tracking.create(tracking_uri, **given, key="one") == first
    assert tracking.create(tracking_uri, **given, key="two") != first
    assert tracking.create(tracking_uri, **given) != tracking.create(tracking_uri, **given)
