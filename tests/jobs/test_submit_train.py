"""``jobs.submit`` with the real ``jobs.train`` on a real cluster."""

import json
from pathlib import Path

import pytest
from helpers.machine import wait_until
from helpers.tiny import ABSURD, checkpoint, history, options, tracked
from helpers.tree import ROOT

from jobs.submit import main
from vamf.cluster.search.trials import load_trials
from vamf.cluster.submission import dashboard, job_logs
from vamf.cluster.submission.submit import Submission, submit
from vamf.tracking.provenance import commit_of


@pytest.mark.slow
def test_a_training_runs_on_the_cluster_and_is_followed(
    ray_head: str,
    tracking_uri: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    submit = ["--address", ray_head, "--working-dir", str(ROOT), "--", "train", "digits"]
    submit += ["--storage", str(tmp_path)]
    workers = ["--scaling.workers", "1"]
    assert main([*submit, "--name", "good", *workers, *options({})]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert f"run        {tmp_path / 'good'}" in out
    assert out.index("Submitted ") < out.index("eval/loss_variance") < out.index("SUCCEEDED")
    for noise in ("RayTrainWorker", "TrainController", "Warning", "Traceback"):
        assert noise not in out
    (run,) = tracked(tracking_uri, tmp_path / "good")
    assert run.info.status == "FINISHED"
    assert list(history(tracking_uri, run, "loss/train")) == list(range(1, 7))
    assert checkpoint(tmp_path / "good", 6).load()["step"] == 6

    assert run.data.tags["ray.job"] in out
    assert run.data.tags["git.commit"] == (commit_of(ROOT / "README.md") or "unknown")

    assert main([*submit, "--name", "bad", *options(ABSURD)]) == 1
    out = capfd.readouterr().out
    assert "error: the loss of step 2 is not finite\n" in out
    assert "FAILED" in out.splitlines()[-1]
    assert "Traceback" not in out
    (run,) = tracked(tracking_uri, tmp_path / "bad")
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_a_search_runs_on_the_cluster_and_is_followed(
    ray_head: str,
    tracking_uri: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a space and with a loss of one's own, in files that travel with the job."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    submit = ["--address", ray_head, "--working-dir", str(ROOT), "--", "tune"]
    submit += ["jobs/examples/shapes_space.py", "digits", "--trials", "2"]
    submit += ["--storage", str(tmp_path), "--name", "sweep"]
    own = {"loss.kind": "jobs/examples/shapes.py:WithBoundary", "loss.boundary": 0.25}
    assert main([*submit, *options(own)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    ends = [out.index(what) for what in ("trial 0  ", "* Pareto front; ", "SUCCEEDED")]
    assert ends == sorted(ends)
    for noise in ("Warning", "Traceback", "TuneController"):
        assert noise not in out
    (sweep,) = tracked(tracking_uri, tmp_path / "sweep")
    assert sweep.info.status == "FINISHED"
    assert len(load_trials(tmp_path / "sweep")) == 2
    saved = json.loads((tmp_path / "sweep" / "t000" / "seed_0" / "experiment.json").read_text())
    assert saved["loss"]["kind"] == own["loss.kind"] and saved["loss"]["boundary"] == 0.25

    assert main(submit) == 2  # it is there already
    out = capfd.readouterr().out
    assert f"error: {tmp_path / 'sweep'} exists; choose another --name, or --resume it" in out
    assert "exit code 2" in out.splitlines()[-1]


LONG = {"steps": 4000, "evaluation.every": 4000, "checkpoint.every": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "scaling"), [("train digits", ["--scaling.workers", "1"]), ("tune constant", [])]
)
def test_a_stopped_job_ends_its_runs(
    job: str,
    scaling: list[str],
    ray_head: str,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training with a worker, and a search with a trial: none of their runs stays RUNNING."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    command = [*job.split(), "--storage", str(tmp_path), "--name", "a", *scaling, *options(LONG)]
    job_id = submit(Submission(command=tuple(command), address=ray_head, working_dir=ROOT))
    client = dashboard.connect(ray_head)
    begun = lambda: list((tmp_path / "a").glob("**/checkpoints/step_*"))  # noqa: E731
    wait_until(lambda: bool(begun()), "a step of the job", seconds=300)
    assert job_logs.stop(client, job_id) == 0
    places = [tmp_path / "a", *(path.parent for path in (tmp_path / "a").glob("t*/*/run.json"))]
    runs = [run for place in places for run in tracked(tracking_uri, place)]
    assert len(runs) >= 1 + (job == "tune constant")
    assert {run.info.status for run in runs} == {"KILLED"}
