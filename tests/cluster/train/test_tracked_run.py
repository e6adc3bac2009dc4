"""A run's folder and its MLflow run belong together, and the status is honest."""

import io
import json
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny import TINY, tracked
from mlflow import MlflowClient

from vamf.cluster.train.progress import progress_bar
from vamf.cluster.train.tracked_run import Launch, close_abandoned, create, new, resumed
from vamf.experiment import Experiment
from vamf.tracking.run_end import closing


def status(uri: str, run_id: str) -> tuple[str, str | None]:
    run = MlflowClient(uri).get_run(run_id)
    return run.info.status, run.data.tags.get("error")


def test_a_run_is_created_once_and_rejoined(tracking_uri: str, tmp_path: Path) -> None:
    start = new(tmp_path / "a", tracking_uri, "digits")
    first = create(TINY, start)
    assert create(TINY, start) == first
    (run,) = tracked(tracking_uri, tmp_path / "a")
    assert run.info.run_name == "a"
    assert run.data.params["beta.value"] == "0.5"
    assert run.data.params["optim.lr"] == str(TINY.optim.lr)
    assert (run.data.tags["preset"], run.data.tags["beta"]) == ("digits", "β=0.500")
    files = [f.path for f in MlflowClient(tracking_uri).list_artifacts(first.run_id)]
    assert files == ["experiment.json"]
    experiment, again = resumed(tmp_path / "a", tracking_uri)
    assert (experiment, again.directory) == (TINY, start.directory)


def test_a_folder_of_another_experiment_is_refused(tracking_uri: str, tmp_path: Path) -> None:
    create(TINY, new(tmp_path / "a", tracking_uri, "digits"))
    other = TINY.override({"optim.lr": 0.5})
    with pytest.raises(ValueError, match="a holds another experiment"):
        create(other, new(tmp_path / "a", tracking_uri, "digits"))
    assert Experiment.load(tmp_path / "a" / "experiment.json") == TINY


def test_what_is_not_there_is_not_resumed(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run in .*none: run.json is missing"):
        resumed(tmp_path / "none", tracking_uri)


def test_credentials_do_not_reach_the_folder(tracking_uri: str, tmp_path: Path) -> None:
    run = create(TINY, new(tmp_path / "a", tracking_uri, "digits"))
    saved = json.loads((tmp_path / "a" / "run.json").read_text())
    assert saved["uri"] == ""
    assert saved["run_id"] == run.run_id


def test_a_child_names_its_parent_and_its_trial(tracking_uri: str, tmp_path: Path) -> None:
    parent = create(TINY, new(tmp_path / "parent", tracking_uri, "digits"))
    start = Launch(
        directory=tmp_path / "child",
        uri=tracking_uri,
        name="child",
        preset="digits",
        parent=parent,
        tags={"trial": "3"},
    )
    create(TINY, start)
    (run,) = tracked(tracking_uri, tmp_path / "child")
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.tags["trial"] == "3"


def test_a_run_names_the_run_that_it_starts_from(tracking_uri: str, tmp_path: Path) -> None:
    """Its checkpoint as a parameter, and the run of MLflow as a tag."""
    source = create(TINY, new(tmp_path / "source", tracking_uri, "digits"))
    init = tmp_path / "source" / "checkpoints" / "step_00000006"
    for name, path in (("started", init), ("exported", tmp_path / "model.safetensors")):
        create(replace(TINY, init=path), new(tmp_path / name, tracking_uri, "digits"))
        (run,) = tracked(tracking_uri, tmp_path / name)
        assert run.data.params["init"] == str(path)
        assert run.data.tags.get("init.run") == (source.run_id if path == init else None)
    (run,) = tracked(tracking_uri, tmp_path / "source")
    assert "init" not in run.data.params and "init.run" not in run.data.tags


def test_a_child_on_a_node_that_does_not_see_its_sweep_makes_no_folder(
    tracking_uri: str, tmp_path: Path
) -> None:
    """Made there, it would hold a result that nobody sees."""
    parent = create(TINY, new(tmp_path / "parent", tracking_uri, "digits"))
    elsewhere = replace(parent, spool=str(tmp_path / "unseen" / "spool"))
    start = replace(new(tmp_path / "unseen" / "t0", tracking_uri, "digits"), parent=elsewhere)
    with pytest.raises(FileNotFoundError, match="does not see the sweep's folder"):
        create(TINY, start)
    assert not (tmp_path / "unseen").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ("FINISHED", None)),
        (RuntimeError("out of memory"), ("FAILED", "RuntimeError: out of memory")),
        (KeyboardInterrupt(), ("KILLED", "interrupted")),
    ],
)
def test_the_status_tells_how_it_ended(
    tracking_uri: str,
    tmp_path: Path,
    error: BaseException | None,
    expected: tuple[str, str | None],
) -> None:
    run = create(TINY, new(tmp_path / "a", tracking_uri, "digits"))
    try:
        with closing(run):
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert status(tracking_uri, run.run_id) == expected
    create(TINY, new(tmp_path / "a", tracking_uri, "digits"))
    assert status(tracking_uri, run.run_id) == ("RUNNING", None)
    close_abandoned(tmp_path / "a" / "run.json", tracking_uri)
    assert status(tracking_uri, run.run_id) == ("KILLED", "interrupted")


def test_the_bar_shows_what_the_run_left_even_if_it_fails(tmp_path: Path) -> None:
    said = io.StringIO()
    with (
        redirect_stderr(said),
        pytest.raises(RuntimeError),
        progress_bar(tmp_path, 10, 1),
    ):
        (tmp_path / "progress").write_text("7")
        raise RuntimeError
    assert "7/10" in said.getvalue()
    assert said.getvalue().endswith("\n")
