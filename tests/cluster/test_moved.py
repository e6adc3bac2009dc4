"""A storage folder that is moved: nothing is read from or written to where it was."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.searching import SPACE, begun, database_in, without_ray
from helpers.tiny import TINY, history, tracked
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service import utils
from PIL import Image

from jobs import train
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.search import search_runner
from vamf.cluster.search.study import open_study
from vamf.cluster.train.tracked_run import close_abandoned, create, launch, new
from vamf.experiment import Experiment
from vamf.tracking.event_queue import Event, EventQueue

Figures = dict[str, Any]


def killed_at(step: int) -> Callable[[Figures], None]:
    """Ends a training as Ctrl-C does."""

    def look(progress: Figures) -> None:
        if progress.get("step") == step:
            raise KeyboardInterrupt

    return look


def files_of(uri: str, run: Run, folder: str = "") -> set[str]:
    return {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, folder)}


def in_another_process() -> None:
    """What follows knows nothing of what MLflow remembers of this process's runs."""
    utils._artifact_repos_cache.clear()


@pytest.fixture
def old(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with a database of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    database_in(tmp_path / "old", tracking_uri)
    return tmp_path / "old"


def address(storage: Path) -> str:
    return f"sqlite:///{storage / 'mlflow.db'}"


def test_a_training_goes_on_where_its_folder_is_now(old: Path, tmp_path: Path) -> None:
    """The run that it takes its proxy from was moved too, and a picture still waits to be sent."""
    experiment = TINY.override({"proxy": "reference", "reference": str(old / "frozen")})
    frozen = TINY.override({"steps": 2, "evaluation.every": 2})
    launch(frozen, new(old / "frozen", address(old), "digits"), Scaling())
    with pytest.raises(KeyboardInterrupt):
        start = new(old / "a", address(old), "digits")
        launch(experiment, start, Scaling(), report=killed_at(4))
    (run,) = tracked(address(old), old / "a")
    queue = EventQueue(old / "a" / "spool" / run.info.run_id)
    picture = old / "a" / "samples" / "step_00000004.png"
    picture.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(picture)
    data = {"path": queue.reference(picture), "key": "late", "step": 4}
    queue.append(Event(kind="image", data=data))

    now = tmp_path / "other" / "now"
    now.parent.mkdir()
    old.rename(now)
    in_another_process()
    train.main(["--resume", str(now / "a")])
    assert not old.exists()
    assert Experiment.load(now / "a" / "experiment.json").reference == now / "frozen"
    (after,) = tracked(address(now), now / "a")
    assert (after.info.run_id, after.info.status) == (run.info.run_id, "FINISHED")
    assert list(history(address(now), after, "loss/train")) == [1, 2, 3, 4, 5, 6]
    assert after.info.artifact_uri.startswith((now / "mlartifacts").as_uri())
    assert "experiment.json" in files_of(address(now), after)
    assert any("late" in name for name in files_of(address(now), after, "images"))


def test_a_copy_writes_nothing_to_its_original(old: Path, tmp_path: Path) -> None:
    start = new(old / "a", address(old), "digits")
    with pytest.raises(KeyboardInterrupt):
        launch(TINY, start, Scaling(), report=killed_at(4))
    shutil.copytree(old, tmp_path / "copy")
    in_another_process()
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    train.main(["--resume", str(tmp_path / "copy" / "a")])
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before


def test_a_search_goes_on_where_its_folder_is_now(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by what name."""
    without_ray(monkeypatch)
    sweep = begun(old / "s", address(old))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ray.tune.report", lambda figures: killed_at(6)({"step": figures["steps"]}))
        search_runner.run(SPACE, sweep)
    now = tmp_path / "now"
    old.rename(now)
    (now / "s").rename(now / "renamed")
    in_another_process()
    again = search_runner.resumed(now / "renamed", address(now))
    found, files = search_runner.run(SPACE, again)
    assert not old.exists()
    assert [trial.error for trial in found.trials] == [None, None]
    assert len(open_study(again).trials) == 2
    assert files["table"].parent == now / "renamed"
    (parent,) = tracked(address(now), now / "renamed")
    assert (parent.info.run_name, parent.info.status) == ("s", "FINISHED")


def test_an_orphan_is_closed_from_where_it_lies(old: Path, tmp_path: Path) -> None:
    create(TINY, new(old / "a", address(old), "digits"))
    old.rename(tmp_path / "now")
    close_abandoned(tmp_path / "now" / "a" / "run.json", address(tmp_path / "now"))
    assert not old.exists()
