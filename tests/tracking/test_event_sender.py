"""Events sent by a thread: what is logged does not wait for a receiver, and all of it arrives."""

import threading
from pathlib import Path

import pytest
from helpers.tiny import TINY
from mlflow import MlflowClient

from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.tracked_run import launch, new
from vamf.tracking import Run
from vamf.tracking.event_queue import Event, EventQueue
from vamf.tracking.event_sender import EventSender
from vamf.tracking.server import Server

WAIT_S = 60.0
"""How long a thread waits for another one before the test fails."""


class Inbox:
    """A receiver that keeps each event, with its file's content, once it is allowed to."""

    address = "http://inbox"

    def __init__(self, queue: EventQueue) -> None:
        self.queue = queue
        self.open, self.asked = threading.Event(), threading.Event()
        self.opened_in_time = True
        self.received: list[int | bytes] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None

    def refresh(self) -> None:
        pass

    def send(self, events: list[Event]) -> None:
        self.asked.set()
        self.opened_in_time &= self.open.wait(WAIT_S)
        self.threads.add(threading.current_thread().name)
        if self.error:
            raise self.error
        for event in events:
            has_file = "path" in event.data
            found = self.queue.file(event).read_bytes() if has_file else event.data["step"]
            self.received.append(found)


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(EventQueue(tmp_path / "run" / "spool"))


def test_logging_does_not_wait_for_a_receiver_that_is_slow(inbox: Inbox, tmp_path: Path) -> None:
    sender, picture = EventSender(inbox.queue, inbox), tmp_path / "a.png"
    with sender.in_background():
        sender.post("metrics", values={"loss": 1.0}, step=1)
        assert inbox.asked.wait(WAIT_S)  # the first one is being sent, until the inbox opens
        picture.write_bytes(b"first")
        sender.post("image", path=str(picture), key="samples", step=1)
        picture.write_bytes(b"second")
        sender.post("image", path=str(picture), key="samples", step=2)
        picture.unlink()
        sender.post("metrics", values={"loss": 0.5}, step=2)
        assert inbox.received == []
        inbox.open.set()
    assert sender.attempt() and inbox.opened_in_time
    assert inbox.received == [1, b"first", b"second", 2]
    assert not list(inbox.queue.folder.glob("files/*"))  # no copy is left


def test_each_event_arrives_once_and_in_order(inbox: Inbox) -> None:
    inbox.open.set()
    sender = EventSender(inbox.queue, inbox)
    with sender.in_background():
        for step in range(300):
            sender.post("metrics", values={"loss": 1.0}, step=step)
    assert sender.attempt()
    assert inbox.received == list(range(300))


def test_a_thread_that_meets_an_outage_keeps_the_events(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox.open.set()
    inbox.error = ConnectionError("refused")
    sender = EventSender(inbox.queue, inbox)
    with sender.in_background():
        for step in (1, 2):
            sender.post("metrics", values={"loss": 1.0}, step=step)
        assert inbox.asked.wait(WAIT_S)
    assert inbox.threads == {"event-sender"}
    assert inbox.queue.waiting() == 2
    assert capsys.readouterr().err.count("metrics are kept in") == 1
    inbox.error = None
    assert sender.attempt()
    assert inbox.received == [1, 2]


def test_an_event_that_the_disk_refuses_is_sent_at_once(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.open.set()
    sender = EventSender(inbox.queue, inbox)
    with sender.in_background():
        sender.post("metrics", values={"loss": 1.0}, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(inbox.queue, "append", lambda _: (_ for _ in ()).throw(OSError("full")))
            sender.post("metrics", values={"loss": 1.0}, step=2)
    assert sender.attempt()
    assert sorted(map(str, inbox.received)) == ["1", "2"]


def test_a_training_ends_its_steps_while_mlflow_does_not_answer(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow answers the first metrics once the last step has been made."""
    trained, send, in_time = threading.Event(), Server.send, []

    def late(server: Server, events: list[Event]) -> None:
        if events[0].kind == "metrics":
            in_time.append(trained.wait(WAIT_S))
        send(server, events)

    def report(progress: dict[str, float]) -> None:
        if progress["step"] == TINY.steps:
            trained.set()

    monkeypatch.setattr(Server, "send", late)
    launch(TINY, new(tmp_path / "a", tracking_uri, "digits"), Scaling(), report=report)
    assert in_time and all(in_time)
    run = Run.load(tmp_path / "a" / "run.json", tracking_uri)
    points = MlflowClient(tracking_uri).get_metric_history(run.run_id, "loss/train")
    assert [point.step for point in points] == list(range(1, TINY.steps + 1))
