"""``jobs.submit`` with the real ``jobs.train`` on a real cluster."""

from pathlib import Path

import pytest
from tiny import ABSURD, checkpoint, history, options, tracked

from jobs.submit import main
from vamf.cluster.trials import load_trials

ROOT = Path(__file__).parents[2]


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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    submit = ["--address", ray_head, "--working-dir", str(ROOT), "--", "tune", "constant"]
    submit += ["--trials", "2", "--storage", str(tmp_path), "--name", "sweep"]
    assert main([*submit, *options({})]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    ends = [out.index(what) for what in ("trial 0  ", "* Pareto front; ", "SUCCEEDED")]
    assert ends == sorted(ends)
    for noise in ("Warning", "Traceback", "TuneController"):
        assert noise not in out
    (sweep,) = tracked(tracking_uri, tmp_path / "sweep")
    assert sweep.info.status == "FINISHED"
    assert len(load_trials(tmp_path / "sweep")) == 2

    assert main(submit) == 1  # it is there already
    out = capfd.readouterr().out
    assert f"error: {tmp_path / 'sweep'} exists; choose another --name, or --resume it" in out
    assert "exit code 2" in out.splitlines()[-1]
