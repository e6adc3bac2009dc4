"""The queue of events and its sender by themselves: what is kept, sent, refused, and tried when."""

import errno
import itertools
import json
import threading
from pathlib import Path

import pytest
import requests

from vamf.tracking import event_queue, event_sender
from vamf.tracking.event_queue import Event, EventQueue
from vamf.tracking.event_sender import EventSender, is_refusal


def metrics(step: int) -> Event:
    return Event(kind="metrics", data={"values": {"loss": 1.0}, "step": step})


def steps(queue: EventQueue) -> list[int]:
    return [queued.event.data["step"] for queued in queue.peek()]


@pytest.fixture
def queue(tmp_path: Path) -> EventQueue:
    (tmp_path / "run").mkdir()  # a queue makes its own folder and spool, and no run's
    return EventQueue(tmp_path / "run" / "spool" / "id")


def test_events_leave_in_order_as_they_are_acknowledged(queue: EventQueue) -> None:
    assert queue.empty() and queue.waiting() == queue.refused() == 0 and queue.peek() == []
    for step in range(4):
        queue.append(metrics(step))
    ends = [queued.end for queued in queue.peek()]
    assert ends[-1] == (queue.folder / "events.jsonl").stat().st_size
    for count, end in enumerate(ends, start=1):
        assert not queue.empty()
        queue.acknowledge(end)
        assert steps(queue) == list(range(count, 4)) and queue.waiting() == 4 - count
    assert queue.empty() and (queue.folder / "events.jsonl").stat().st_size == 0
    queue.append(metrics(9))
    assert steps(queue) == steps(EventQueue(queue.folder)) == [9]


@pytest.mark.parametrize("piece", [1, 200, 1 << 18])
def test_a_long_queue_is_read_in_pieces(
    queue: EventQueue, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Each look finds at least one event, behind lines that are none, and no more than a piece."""
    monkeypatch.setattr(event_queue, "PIECE", piece)
    queue.append(metrics(0))
    with (queue.folder / "events.jsonl").open("ab") as file:
        file.write(b"\n".join([b'{"half', b'{"kind": "metrics"}', b"[]", b'{"torn": '] * 20))
    for step in range(1, 8):
        queue.append(metrics(step))
    assert queue.waiting() == 8
    found, looks = [], 0
    while waiting := queue.peek():
        found += [queued.event.data["step"] for queued in waiting]
        queue.acknowledge(waiting[-1].end)
        looks += 1
    assert found == list(range(8)) and (looks == 1) == (piece > 200) and (looks == 8) == (piece < 2)


@pytest.mark.parametrize("sent", ["", "7", "100000"])
def test_a_mark_that_does_not_fit_the_file_loses_no_event(queue: EventQueue, sent: str) -> None:
    """Of a killed process: an empty one, and those of a longer file, are none."""
    queue.append(metrics(1))
    queue.append(metrics(2))
    (queue.folder / "sent").write_text(sent)
    assert steps(queue) == ([2] if sent == "7" else [1, 2])  # within a line: the next one


def test_what_is_left_of_a_file_cut_at_its_mark_is_nothing(queue: EventQueue) -> None:
    queue.append(metrics(1))
    (queue.folder / "sent").write_text(str(queue.peek()[0].end))
    assert queue.empty() and queue.waiting() == 0
    queue.append(metrics(2))
    assert steps(queue) == [2]


def test_while_a_queue_is_copied_nothing_is_added(queue: EventQueue) -> None:
    queue.append(metrics(1))
    other = threading.Thread(target=EventQueue(queue.folder).append, args=(metrics(2),))
    with queue.frozen():
        other.start()
        other.join(0.2)
        content = (queue.folder / "events.jsonl").read_bytes()
        assert content.count(b"\n") == 1 and other.is_alive()
    other.join()
    assert steps(queue) == [1, 2]


def test_a_copy_that_a_killed_process_left_half_made_is_made_again(
    queue: EventQueue, tmp_path: Path
) -> None:
    picture, event = tmp_path / "a.png", Event(kind="image", data={"path": str(tmp_path / "a.png")})
    picture.write_bytes(b"whole")
    half = queue.folder / "files" / event.id / "half"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"longer than the whole")
    queue.copy_file(event)
    assert queue.file(event) != picture and queue.file(event).read_bytes() == b"whole"


def test_half_a_copied_folder_is_copied_again(queue: EventQueue, tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "a").write_bytes(b"whole")
    event = Event(kind="artifact", data={"path": str(model)})
    half = queue.folder / "files" / event.id / "half"
    half.mkdir(parents=True)
    (half / "of another time").touch()
    queue.copy_file(event)
    copy = queue.file(event)
    assert copy != model and [file.name for file in copy.iterdir()] == ["a"]


def test_a_process_killed_while_it_empties_the_queue_hides_no_later_event(
    queue: EventQueue,
) -> None:
    """The file is cut first, and its mark, of the longer file, is still there."""
    for step in range(3):
        queue.append(metrics(step))
    (queue.folder / "sent").write_text(str(queue.peek()[-1].end))
    (queue.folder / "events.jsonl").write_bytes(b"")
    assert queue.empty()
    for step in range(5):
        queue.append(metrics(step))
    assert steps(queue) == [0, 1, 2, 3, 4]


def test_an_event_has_the_time_at_which_it_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_456_789)
    one, other = metrics(1), metrics(1)
    assert one.time_ms == 1_700_000_000_123 and one.id != other.id


def test_a_refused_event_is_kept_with_the_reason(queue: EventQueue) -> None:
    queue.append(metrics(1))
    for count in (1, 2):
        queue.reject(metrics(count), "why")
        assert queue.refused() == count
    lines = [json.loads(line) for line in queue.rejected.read_text().splitlines()]
    assert [(line["reason"], line["data"]["step"]) for line in lines] == [("why", 1), ("why", 2)]


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_is_sent_as_it_was_when_it_was_copied(queue: EventQueue, folder: bool) -> None:
    run = queue.folder.parents[1]
    original = run / "samples" / "a.png"
    content = original / "part" if folder else original
    content.parent.mkdir(parents=True)
    content.write_bytes(b"first")
    name = queue.reference(original)
    assert name == "../../samples/a.png"  # so that a run's folder can be moved
    assert queue.reference(run.parent / "b.png") == str((run.parent / "b.png").resolve())
    event = Event(kind="image", data={"path": name})
    assert queue.file(event).resolve() == original.resolve()
    queue.append(event)
    for _ in range(2):  # the copy is made once
        queue.copy_file(event)
        content.write_bytes(b"second")
    copy = queue.file(event)
    assert copy.name == "a.png" and copy.is_relative_to(queue.folder)
    assert (copy / "part" if folder else copy).read_bytes() == b"first"
    queue.delete_copy(event)
    queue.delete_copy(event)
    assert queue.file(event).resolve() == original.resolve()
    queue.copy_file(Event(kind="image", data={"path": "../../samples/none.png"}))  # nothing to copy


class Receiver:
    """Receives events, unless it is told which error to raise for which."""

    address = "http://user:secret@inbox"

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.refreshed = 0
        self.away: Exception | None = None
        self.refuses: set[int] = set()

    def refresh(self) -> None:
        self.refreshed += 1

    def send(self, events: list[Event]) -> None:
        if self.away:
            raise self.away
        found = [event.data["step"] for event in events]
        if self.refuses & {*found}:
            raise ValueError(f"bad {sorted(self.refuses & {*found})}")
        self.groups.append(found)


class Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(event_sender.time, "monotonic", found.monotonic)
    return found


def test_neighbouring_metrics_are_sent_together_and_all_else_alone(queue: EventQueue) -> None:
    receiver = Receiver()
    kinds = ["metrics", "metrics", "tags", "tags", "metrics", "metrics", "metrics"]
    for step, kind in enumerate(kinds):
        queue.append(Event(kind=kind, data={"step": step}))
    assert EventSender(queue, receiver).attempt()
    assert receiver.groups == [[0, 1], [2], [3], [4, 5, 6]] and receiver.refreshed == 1


def test_the_receiver_of_nothing_is_left_alone(queue: EventQueue) -> None:
    receiver = Receiver()
    receiver.away = ConnectionError("refused")
    assert EventSender(queue, receiver).attempt() and receiver.refreshed == 0


def test_of_a_group_that_is_refused_only_the_bad_ones_are_lost(
    queue: EventQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver = Receiver()
    receiver.refuses = {1, 3}
    for step in range(5):
        queue.append(metrics(step))
    sender = EventSender(queue, receiver)
    assert sender.attempt() and receiver.groups == [[0], [2], [4]] and queue.refused() == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"MLflow refused metrics loss (ValueError: bad [{step}]); kept in {queue.rejected}"
        for step in (1, 3)
    ]
    sender.post("metrics", values={"loss": 1.0}, step=1)  # the same once more: nothing new is said
    assert queue.refused() == 3 and capsys.readouterr().err == ""


def test_what_was_refused_is_named(queue: EventQueue, capsys: pytest.CaptureFixture[str]) -> None:
    receiver = Receiver()
    receiver.refuses = {1}
    sender = EventSender(queue, receiver)
    sender.post("image", key="samples", path="a.png", step=1)
    sender.post("artifact", path="b.txt", step=1)
    sender.post("metrics", values={"one": 1.0, "two": 2.0}, step=1)
    sender.post("tags", step=1)
    said = [line.partition(" (")[0] for line in capsys.readouterr().err.splitlines()]
    names = ["image samples", "artifact b.txt", "metrics one, two", "tags "]
    assert said == [f"MLflow refused {name}" for name in names]


@pytest.mark.parametrize(("took", "pause"), [(0.0, 10.0), (0.9, 10.0), (3.0, 30.0)])
def test_after_an_outage_there_is_a_pause_the_longer_the_longer_an_attempt_took(
    queue: EventQueue,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    took: float,
    pause: float,
) -> None:
    receiver = Receiver()
    sender = EventSender(queue, receiver)
    sender.post("metrics", step=0)

    def slow(events: list[Event]) -> None:
        clock.now += took
        raise ConnectionError("refused")

    receiver.send, send = slow, receiver.send  # type: ignore[method-assign]
    sender.post("metrics", step=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow at http://inbox ") and "secret" not in line
    assert f"training continues, metrics are kept in {queue.folder}" in line
    receiver.send = send  # type: ignore[method-assign]
    clock.now += pause - 0.01
    sender.post("metrics", step=2)
    assert receiver.groups == [[0]] and steps(queue) == [1, 2]
    clock.now += 0.01
    sender.post("metrics", step=3)
    assert receiver.groups == [[0], [1, 2, 3]] and queue.empty() and receiver.refreshed == 2
    assert capsys.readouterr().err == (
        "MLflow at http://inbox is back; what was kept is being sent\n"
    )
    sender.post("metrics", step=4)  # at once, and without a word
    assert receiver.groups[-1] == [4] and capsys.readouterr().err == "" and receiver.refreshed == 2


def test_an_outage_is_told_once(
    queue: EventQueue, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver = Receiver()
    receiver.away = ConnectionError("refused")
    sender = EventSender(queue, receiver)
    for step in range(3):
        sender.post("metrics", step=step)
        assert not sender.attempt()
        clock.now += 60
    assert len(capsys.readouterr().err.splitlines()) == 1
    receiver.away = None
    assert sender.attempt() and receiver.groups == [[0, 1, 2]]


def test_after_another_sender_the_receiver_is_read_again(queue: EventQueue) -> None:
    """What the other one has sent is not sent twice."""
    receiver = Receiver()
    first, second = (EventSender(EventQueue(queue.folder), receiver) for _ in range(2))
    expected = [1, 1, 2, 2, 3, 4]
    for sender, count in zip((first, first, second, second, first, second), expected, strict=True):
        sender.post("metrics", step=1)
        assert receiver.refreshed == count


def test_while_another_process_sends_events_wait(queue: EventQueue) -> None:
    receiver = Receiver()
    sender = EventSender(queue, receiver)
    with EventQueue(queue.folder).sender() as (mine, changed):
        assert mine and changed
        with queue.sender() as refused:
            assert refused == (False, False)
        sender.post("metrics", step=1)
        assert not sender.attempt() and steps(queue) == [1] and receiver.groups == []
    assert sender.attempt() and receiver.groups == [[1]]


def test_a_queue_that_cannot_be_written_is_told_once_and_passed_by(
    queue: EventQueue, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.folder.parent.mkdir()
    queue.folder.write_text("a file where a folder should be")
    receiver = Receiver()
    sender = EventSender(queue, receiver)
    for step in (1, 2):
        sender.post("metrics", step=step)
    assert receiver.groups == [[1], [2]] and receiver.refreshed == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{queue.folder} cannot be used, metrics may be lost (")
    receiver.away = ConnectionError("refused")
    sender.post("metrics", step=3)  # lost, and the receiver is left alone for ten seconds
    receiver.away = None
    clock.now += 9.99
    sender.post("metrics", step=4)
    assert receiver.groups == [[1], [2]]
    clock.now += 0.01
    sender.post("metrics", step=5)
    assert receiver.groups == [[1], [2], [5]] and receiver.refreshed == 2


def answered(status: int | None) -> requests.RequestException:
    response = None
    if status is not None:
        response = requests.Response()
        response.status_code = status
    return requests.HTTPError("no", response=response)


def coded(code: str, text: str = "no") -> Exception:
    error = RuntimeError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


NEVER = [answered(status) for status in (400, 404, 409, 413, 422, 499)]
NEVER += [coded("INVALID_PARAMETER_VALUE"), coded("RESOURCE_DOES_NOT_EXIST")]
NEVER += [OSError(code, "no") for code in (errno.ENOENT, errno.EACCES, errno.EISDIR)]
NEVER += [OSError("no picture"), ValueError("no"), TypeError("no")]
LATER = [answered(status) for status in (None, 399, 401, 403, 407, 408, 425, 429, 500, 503)]
LATER += [coded("INTERNAL_ERROR"), coded("BAD_REQUEST", "database is locked")]
LATER += [OSError(code, "no") for code in (errno.ENOSPC, errno.EIO)]
LATER += [ConnectionError("no"), TimeoutError("no"), RuntimeError("no"), KeyError("no")]


@pytest.mark.parametrize(
    ("error", "useless"), [*((e, True) for e in NEVER), *((e, False) for e in LATER)], ids=repr
)
def test_which_errors_are_final(error: Exception, useless: bool) -> None:
    assert is_refusal(error) == useless


def test_the_end_of_the_background_ends_its_thread(queue: EventQueue) -> None:
    receiver = Receiver()
    sender = EventSender(queue, receiver)
    for step in itertools.islice(itertools.count(), 3):
        with sender.in_background():
            sender.post("metrics", step=step)
        sender.attempt()
        sender.post("metrics", step=10 + step)  # in the caller's own thread again
        assert queue.empty()
    assert [step for group in receiver.groups for step in group] == [0, 10, 1, 11, 2, 12]
