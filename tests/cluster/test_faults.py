"""Workers and drivers that die, and losses that are not finite: what is lost and reported."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.disks import fill, small_disk
from helpers.machine import command, descendants, kill, train_workers, wait_until
from helpers.mlflow_server import Server
from helpers.tiny import ABSURD, TINY, checkpoint, history, options, same, tracked
from helpers.twin_runs import CHANGES, Twins
from mlflow.entities import Run

from jobs import train
from vamf.cluster.ray.scaling import Scaling
from vamf.cluster.train import worker
from vamf.cluster.train.tracked_run import launch, new
from vamf.errors import RunFailed
from vamf.tracking.event_queue import EventQueue


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
    assert capfd.readouterr() == ("", "")  # not even Ray's own lines on a worker's death
    wait_until(lambda: not train_workers(), "the end of all workers")


@pytest.mark.slow
def test_a_killed_driver_costs_nothing(
    twins: Twins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cluster dies with it: two workers, and all that Ray started for them."""
    directory, two_workers = tmp_path / "killed", ["--scaling.workers", "2"]
    command_line = [sys.executable, "-m", "jobs.train", "digits"]
    arguments = ["--storage", str(tmp_path), "--tracking", twins.uri, *two_workers]
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [*command_line, "--name", "killed", *arguments, *options(CHANGES)],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            stdout=said,
            stderr=said,
        )
    try:
        wait_until(lambda: latest(directory) > 2 or driver.poll() is not None, "a checkpoint")
        family = descendants(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    text = (tmp_path / "said").read_text()
    assert 0 < latest(directory) < 40, text
    assert all("step/s" in line or "/40 [" in line for line in text.splitlines()), text
    assert len(text.splitlines()) <= 2, text  # a log gets no frame every half second
    assert any("RayTrainWorker" in command(pid) for pid in family) or len(family) > 4
    # Ray's agents then try for a minute, fixed, to tell the lost head of it.
    wait_until(
        lambda: all("Agent" in line for pid in family if (line := command(pid))),
        "the end of all that the driver started",
    )
    kill(family)
    (run,) = tracked(twins.uri, directory)
    assert run.info.status == "RUNNING"

    train.main(["--resume", str(directory), "--tracking", twins.uri, *two_workers])
    assert f"run        {directory}" in capsys.readouterr().out
    assert_as_twin(directory, twins.two, twins.uri)


def assert_as_twin(directory: Path, twin: Path, uri: str) -> None:
    """Whatever happened to a run: its weights, its curves and its files are its twin's."""
    assert same(checkpoint(directory, 40).load(), checkpoint(twin, 40).load())
    run = assert_history(uri, directory, twin)
    left = [str(path) for path in directory.rglob("*") if path.suffix in (".partial", ".removed")]
    assert left == []
    assert EventQueue(directory / "spool" / run.info.run_id).empty()


def assert_history(uri: str, place: object, twin: Path) -> Run:
    """MLflow has one run of a place, and its curves are its twin's."""
    (run,), (undisturbed,) = tracked(uri, place), tracked(uri, twin)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    for key in ("loss/train", "grad/norm", "eval/loss_variance"):
        assert history(uri, run, key) == history(uri, undisturbed, key), key
    return run


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_costs_nothing(
    twins: Twins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_at_15(progress: Mapping[str, Any]) -> None:
        if progress["step"] == 15:
            fill(disk / "filler")

    with small_disk(tmp_path / "disk", 128) as disk:
        directory = disk / "full"
        start = new(directory, twins.uri, "digits")
        with pytest.raises(RunFailed, match="No space left on device; checkpoints") as caught:
            launch(twins.experiment, start, Scaling(), report=fill_at_15)
        assert "\n" not in str(caught.value)
        assert latest(directory) == 15
        assert not list((directory / "checkpoints").glob(".*"))
        (run,) = tracked(twins.uri, directory)
        assert run.info.status == "FAILED"
        assert "No space left on device" in run.data.tags["error"]

        with pytest.raises(SystemExit):
            train.main(["--resume", str(directory), "--tracking", twins.uri])
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: cannot write ") and "No space left on device" in last

        (disk / "filler").unlink()
        train.main(["--resume", str(directory), "--tracking", twins.uri])
        assert_as_twin(directory, twins.one, twins.uri)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_reported_and_costs_only_its_steps(
    twins: Twins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "cut"

    def die(progress: Mapping[str, Any]) -> None:
        if progress["step"] == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(twins.experiment, new(directory, twins.uri, "digits"), Scaling(), report=die)
    damaged = checkpoint(directory, latest(directory))
    os.truncate(damaged.path / "state.pt", 1000)
    capsys.readouterr()
    train.main(["--resume", str(directory), "--tracking", twins.uri])
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    (run,) = tracked(twins.uri, directory)
    assert said == [run.data.tags["checkpoint.damaged"]]
    assert said[0].startswith(f"checkpoint {damaged.path} is damaged: state.pt: 1000 of ")
    assert said[0].endswith(f"; resumes from step {damaged.step - 1}")
    assert_as_twin(directory, twins.one, twins.uri)


@pytest.mark.slow
def test_an_mlflow_server_that_is_away_costs_nothing(
    twins: Twins, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = Server(Path(twins.uri.removeprefix("sqlite:///")).parent)
    directory = tmp_path / "away"

    def come_and_go(progress: Mapping[str, Any]) -> None:
        if progress["step"] == 7:
            server.kill()
        if progress["step"] == 33:
            server.start()

    try:
        server.start()
        start = new(directory, server.uri, "digits")
        launch(twins.experiment, start, Scaling(), report=come_and_go)
    finally:
        server.kill()
    said = capfd.readouterr().err
    assert said.count("does not answer; training continues") == 1
    assert_as_twin(directory, twins.one, twins.uri)


FAULTY: dict[str, tuple[type[Exception], str]] = {
    "ValueError": (ValueError, "batch must be even; got 7"),
    "TypeError": (RunFailed, "TypeError: batch must be even; got 7; traceback in "),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTY)
def test_an_error_that_would_come_again_is_not_tried_again(
    kind: str,
    local_ray: None,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work(config: dict[str, Any]) -> None:  # a closure, which Ray pickles whole
        import builtins
        from pathlib import Path

        with (Path(config["directory"]) / "starts").open("a") as file:
            file.write("x")
        error = getattr(builtins, kind)("batch must be even; got 7")
        error.add_note("Traceback: in work")
        raise error

    monkeypatch.setattr(worker, "work", work)
    directory, (raised, said) = tmp_path / "wrong", FAULTY[kind]
    with pytest.raises(raised) as caught:
        launch(TINY, new(directory, tracking_uri, "digits"), Scaling(workers=1))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert (directory / "starts").read_text() == "x"
    if raised is RunFailed:
        assert "in work" in (directory / "error.txt").read_text()
    assert capfd.readouterr() == ("", "")
    (run,) = tracked(tracking_uri, directory)
    assert run.info.status == "FAILED"


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


@pytest.mark.slow
def test_a_search_ends_with_one_line_when_its_disk_is_full(
    tracking_uri: str, tmp_path: Path
) -> None:
    """And goes on once there is room: what could not be written is no result."""
    program = [sys.executable, "-m", "jobs.tune"]
    with small_disk(tmp_path / "disk", 16) as disk:
        new = ["constant", "digits", "--trials", "2", "--name", "s", "--storage", str(disk)]
        (disk / "filler").write_bytes(bytes(15 << 20))  # room for a study and a checkpoint or two
        ended = subprocess.run(
            [*program, *new, "--tracking", tracking_uri, *options({})],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            capture_output=True,
            text=True,
        )
        (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
        assert "No space left on device" in line or "disk is full" in line, line
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert "its process died" not in ended.stdout
        assert not [json.loads(f.read_text())["error"] for f in disk.glob("s/t*/trial.json")]

        (disk / "filler").unlink()
        again = subprocess.run(
            [*program, "--resume", str(disk / "s"), "--tracking", tracking_uri],
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            capture_output=True,
            text=True,
        )
        assert again.returncode == 0, again.stderr
        trials = [json.loads(file.read_text()) for file in disk.glob("s/t*/trial.json")]
        assert [trial["error"] for trial in trials] == [None, None]
