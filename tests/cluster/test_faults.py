"""Workers and drivers that die, and losses that are not finite: what is lost, and what is told."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from machine import train_workers, wait_until
from tiny import ABSURD, checkpoint, history, options, same, tracked
from twin_runs import Twins

from jobs import train
from vamf.cluster.launch import launch, new
from vamf.cluster.train import Scaling


def latest(directory: Path) -> int:
    """The step of a run's latest checkpoint; 0 if there is none."""
    names = [path.name for path in (directory / "checkpoints").glob("step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(
    twins: Twins, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment, directory = twins.experiment, tmp_path / "killed"
    killed: list[tuple[int, int]] = []

    def kill_one() -> None:
        wait_until(lambda: latest(directory) > 0, "the first checkpoint")
        pid = min(train_workers())
        os.kill(pid, signal.SIGKILL)
        killed.append((pid, latest(directory)))

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = launch(experiment, new(directory, twins.uri, "digits"), Scaling(workers=2))
    killer.join()
    assert summary.step == experiment.steps
    ((_, step),) = killed
    assert 0 < step < experiment.steps
    assert same(checkpoint(directory, 40).load(), checkpoint(twins.two, 40).load())
    (run,) = tracked(twins.uri, directory)
    (undisturbed,) = tracked(twins.uri, twins.two)
    assert run.info.status == "FINISHED"
    for key in ("loss/train", "grad/norm", "eval/loss_variance"):
        assert history(twins.uri, run, key) == history(twins.uri, undisturbed, key)
    out, err = capfd.readouterr()
    assert "Traceback" not in out
    assert err == ""


@pytest.mark.slow
def test_a_killed_driver_costs_nothing(tracking_uri: str, tmp_path: Path) -> None:
    changes = {"steps": 100, "checkpoint.every": 5, "log_every": 5, "evaluation.every": 50}
    arguments = ["--storage", str(tmp_path), "--tracking", tracking_uri, *options(changes)]
    killed, twin = tmp_path / "killed", tmp_path / "twin"
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.train", "digits", "--name", "killed", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdout=said,
            stderr=said,
        )
    try:
        wait_until(lambda: latest(killed) > 0 or driver.poll() is not None, "a checkpoint")
    finally:
        driver.kill()
        driver.wait()
    text = (tmp_path / "said").read_bytes().decode()
    assert 0 < latest(killed) < 100, text
    frames = text.split("\r")  # of the progress bar, which is all that was said
    assert all("step/s" in frame or not frame.strip() for frame in frames), text
    (run,) = tracked(tracking_uri, killed)
    assert run.info.status == "RUNNING"

    train.main(["--resume", str(killed), "--tracking", tracking_uri])
    train.main(["digits", "--name", "twin", *arguments])
    assert same(checkpoint(killed, 100).load(), checkpoint(twin, 100).load())
    (run,), (undisturbed,) = tracked(tracking_uri, killed), tracked(tracking_uri, twin)
    assert run.info.status == "FINISHED"
    assert list(history(tracking_uri, run, "loss/train")) == list(range(5, 101, 5))
    for key in ("loss/train", "grad/norm", "eval/loss_variance"):
        ours, theirs = (history(tracking_uri, r, key) for r in (run, undisturbed))
        assert ours == theirs, key


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "absurd"
    arguments = ["--storage", str(tmp_path), "--name", "absurd", "--tracking", tracking_uri]
    with pytest.raises(SystemExit) as ended:
        train.main(["digits", *arguments, *options(ABSURD)])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "error: the loss of step 2 is not finite"
    assert "%" not in err.splitlines()[-1]  # the progress bar has ended its own line before

    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step_00000001"]
    good = checkpoint(directory, 1)
    assert torch.isfinite(torch.tensor(good.metrics()["loss/train"]))
    saved = (good.path / "state.pt").read_bytes()
    (run,) = tracked(tracking_uri, directory)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "NonFiniteLoss: the loss of step 2 is not finite"

    with pytest.raises(SystemExit):
        train.main(["--resume", str(directory), "--tracking", tracking_uri])
    assert capsys.readouterr().err.splitlines()[-1] == "error: the loss of step 2 is not finite"
    assert (good.path / "state.pt").read_bytes() == saved
    assert len(tracked(tracking_uri, directory)) == 1


def test_a_checkpoint_of_another_experiment_is_refused(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "short"
    arguments = ["--storage", str(tmp_path), "--name", "short", "--tracking", tracking_uri]
    train.main(["digits", *arguments, *options({"steps": 2})])
    out = capsys.readouterr().out
    assert f"run        {directory}" in out
    saved = directory / "experiment.json"
    saved.write_text(saved.read_text().replace('"batch": 16', '"batch": 32'))
    with pytest.raises(SystemExit) as ended:
        train.main(["--resume", str(directory), "--tracking", tracking_uri])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("is of another experiment: batch 16 there, 32 here")
    (run,) = tracked(tracking_uri, directory)
    assert run.info.status == "FINISHED"  # as it was: nothing was resumed
