"""A run's folder beside another MLflow than the one it began with."""

import shutil
from pathlib import Path

import pytest
from helpers.tiny import TINY, tracked
from mlflow import MlflowClient

from jobs import train
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train.tracked_run import launch, new
from vamf.errors import NotCreated


@pytest.fixture
def other(tracking_uri: str, tmp_path: Path) -> str:
    """An MLflow of before the run."""
    shutil.copy(tracking_uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    return f"sqlite:///{tmp_path / 'other.db'}"


@pytest.fixture
def begun(other: str, tracking_uri: str, tmp_path: Path) -> Path:
    """The folder of a run."""
    directory = tmp_path / "begun"
    launch(TINY, new(directory, tracking_uri, "digits"), Scaling())
    return directory


def reported(directory: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``--resume`` ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train.main(["--resume", str(directory), "--tracking", uri])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_another_mlflow_lacks_the_run_and_that_is_reported(
    begun: Path, other: str, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = tracked(tracking_uri, begun)
    line = reported(begun, other, capsys)
    assert line.startswith(f"error: MLflow at {other} must have run {run.info.run_id} of {begun};")
    assert line.endswith("--tracking must name the MLflow that the run began with")


def test_a_deleted_run_is_reported_with_the_way_back(
    begun: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = tracked(tracking_uri, begun)
    MlflowClient(tracking_uri).delete_run(run.info.run_id)
    restore = f"`mlflow runs restore --run-id {run.info.run_id}` brings it back"
    assert reported(begun, tracking_uri, capsys).endswith(f"it was deleted: {restore}")
    with pytest.raises(NotCreated, match="it was deleted"):
        launch(TINY, new(begun, tracking_uri, "digits"), Scaling())


def test_a_run_goes_on_in_the_mlflow_that_it_began_with(
    begun: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the option was: beside the folder MLflow's own file would be a new, empty one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (before,) = tracked(tracking_uri, begun)
    train.main(["--resume", str(begun)])
    (after,) = tracked(tracking_uri, begun)
    assert after.info.run_id == before.info.run_id
    assert after.info.end_time > before.info.end_time
    assert not (tmp_path / "mlflow.db").exists()
