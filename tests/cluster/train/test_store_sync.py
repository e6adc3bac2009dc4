"""A run's folder and its copy in a store, file by file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.s3_server import Server
from helpers.tiny import TINY

from vamf.cluster.train.store_sync import StoreSync
from vamf.errors import StoreError
from vamf.run_layout import MANIFEST
from vamf.store import Store
from vamf.tracking.event_queue import Event, EventQueue
from vamf.training.checkpoints.checkpoint import CheckpointFolder
from vamf.training.checkpoints.remote_checkpoints import complete


@pytest.fixture
def mirror(s3: Server, tmp_path: Path) -> StoreSync:
    return StoreSync(Store(s3.url(f"{tmp_path.name}/run")), tmp_path / "run")


def save(mirror: StoreSync, step: int) -> None:
    """A checkpoint in the folder, of which one is kept besides the best."""
    folder = CheckpointFolder(path=mirror.folder / "checkpoints", keep=1, best_by="a")
    folder.save(TINY, {"step": step}, {"a": float(step)})


def ignore(name: str, text: str) -> None:
    pass


def test_what_is_written_last_is_in_the_store_at_the_end(mirror: StoreSync) -> None:
    with mirror.following(ignore):
        save(mirror, 1)
        mirror.changed()
        (mirror.folder / "summary.json").write_text("{}")
        save(mirror, 2)
    assert complete(mirror.store) == ["step_00000001", "step_00000002"]
    assert mirror.store.read("summary.json") == b"{}"


def test_the_store_loses_what_the_folder_has_dropped(mirror: StoreSync) -> None:
    for step in (1, 2, 3):
        save(mirror, step)
        with mirror.following(ignore):
            pass
    assert complete(mirror.store) == ["step_00000001", "step_00000003"]
    assert not any("step_00000002" in name for name in mirror.store.names())


def test_a_checkpoint_dropped_on_its_way_arrives(
    mirror: StoreSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Store.upload

    def drop(store: Store, path: Path, name: str) -> None:
        shutil.rmtree(mirror.folder / "checkpoints", ignore_errors=True)
        upload(store, path, name)

    save(mirror, 1)
    monkeypatch.setattr(Store, "upload", drop)
    with mirror.following(ignore):
        pass
    assert complete(mirror.store) == ["step_00000001"]
    assert len((mirror.store / "checkpoints").names()) == 4


def test_a_checkpoint_never_comes_without_what_was_written_before_it(
    mirror: StoreSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is on its way, a picture is drawn, and a second checkpoint is saved."""
    upload, with_second = Store.upload, []
    picture = "samples/step_00000002.png"

    def slow(store: Store, path: Path, name: str) -> None:
        if not (mirror.folder / picture).exists():
            (mirror.folder / picture).parent.mkdir()
            (mirror.folder / picture).write_bytes(b"picture")
            save(mirror, 2)
        upload(store, path, name)
        if "step_00000002" in store.url and name == MANIFEST:
            with_second.append(picture in mirror.store.names())

    save(mirror, 1)
    monkeypatch.setattr(Store, "upload", slow)
    with mirror.following(ignore):
        pass
    assert with_second == [True]


def test_files_follow_and_come_back_without_checkpoints_and_pictures(
    mirror: StoreSync, tmp_path: Path
) -> None:
    save(mirror, 1)
    queue = EventQueue(mirror.folder / "spool" / "x")
    queue.append(Event(kind="tags", data={"a": "b"}))
    for name in ("samples/a.png", "run.json", ".hidden", "ray/x"):
        (mirror.folder / name).parent.mkdir(exist_ok=True)
        (mirror.folder / name).write_text(name)
    mirror.push()
    stored = ["run.json", "samples/a.png", "spool/x/events.jsonl"]
    assert mirror.store.names() == stored
    (mirror.folder / "run.json").unlink()
    mirror.push()
    assert mirror.store.names() == stored[1:]

    other = StoreSync(mirror.store, tmp_path / "other")
    other.pull()
    found = [path.relative_to(other.folder).as_posix() for path in other.folder.rglob("*.*")]
    assert found == ["spool/x/events.jsonl"]
    (waiting,) = EventQueue(other.folder / "spool" / "x").peek()
    assert waiting.event.data == {"a": "b"}


def test_names_that_lead_out_of_the_folder_are_refused(
    mirror: StoreSync, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("../stolen", "/stolen", "a/../../stolen"):
        monkeypatch.setattr(Store, "names", lambda store, name=name: [name])
        monkeypatch.setattr(Store, "read", lambda store, name: b"x")
        with pytest.raises(StoreError, match="must not lead out of it"):
            mirror.pull()
    assert not list(tmp_path.rglob("stolen"))


def test_whatever_goes_wrong_is_raised(mirror: StoreSync, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("a bug")

    said: list[str] = []
    monkeypatch.setattr(Store, "upload", broken)
    monkeypatch.setattr("vamf.cluster.train.store_sync.PAUSES_S", ())
    save(mirror, 1)
    with (
        pytest.raises(StoreError, match="a bug"),
        mirror.following(lambda name, text: said.append(text)),
    ):
        pass
    assert said == ["TypeError('a bug'); training continues"]
