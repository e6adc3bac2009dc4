"""Every command in README.md runs, on a tiny budget."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from pictures import write_images, write_tiny
from tiny import TINY

from jobs import bench, evaluate, export, probe, reproduce, resend, sample, train, tune
from vamf.cluster.launch import create, new
from vamf.cluster.submit import Submission
from vamf.metrics import calibration
from vamf.training.loop import Session
from vamf.training.loop import train as train_in_place

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
COMMANDS = [
    shlex.split(line.rpartition(" -m jobs.")[2], comments=True)
    for block in BLOCKS
    for line in block.splitlines()
    if " -m jobs." in line
]


def commands(name: str) -> list[list[str]]:
    return [arguments for job, *arguments in COMMANDS if job == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "NAME"
    folder.mkdir()
    train_in_place(TINY, Session(directory=folder))
    return folder


def test_every_job_is_shown():
    shown = {job for job, *_ in COMMANDS}
    assert shown == {
        *("train", "tune", "evaluate", "sample", "bench", "submit"),
        *("probe", "reproduce", "export", "encode", "resend"),
    }


@pytest.mark.parametrize("arguments", commands("train") + commands("tune"), ids=" ".join)
def test_experiments_resolve(arguments, capsys, tmp_path):
    """``--resume`` is run for real elsewhere; here it must find that there is nothing to resume."""
    job = train if arguments in commands("train") else tune
    if "--resume" in arguments:
        with pytest.raises(SystemExit):
            job.main(["--resume", str(tmp_path)])
        assert "is missing" in capsys.readouterr().err
        return
    job.main([*arguments, "--dry-run"])
    assert '"steps"' in capsys.readouterr().out


OF_RUNS = [
    (job, arguments)
    for job in (evaluate, sample, export)
    for arguments in commands(job.__name__.rpartition(".")[2])
    if "runs/NAME" in arguments
]


@pytest.mark.parametrize(("job", "arguments"), OF_RUNS, ids=str)
def test_checkpoints_are_used(job, arguments, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job.main([str(run) if argument == "runs/NAME" else argument for argument in arguments])
    assert "step 6" in capsys.readouterr().out
    assert job is evaluate or (tmp_path / arguments[arguments.index("--out") + 1]).exists()


def images_and_check():
    return [a for a in commands("evaluate") if "runs/NAME" not in a]


@pytest.mark.parametrize("arguments", images_and_check(), ids=" ".join)
def test_images_are_measured(arguments, tmp_path, monkeypatch, capsys):
    """On a few random pixels for MNIST, and anchors of which only the sentence is known."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "data")
    write_images(tmp_path / "samples", np.zeros((50, 28, 28), "u1"))
    anchor = calibration.Anchor("it", 3.15, 3.15, 0.05)
    monkeypatch.setattr(calibration, "anchors", lambda *_: iter([anchor]))
    evaluate.main(arguments)
    assert "fd_mnist_cnn64_v1_n50_train" in (out := capsys.readouterr().out) or "pass  it" in out


@pytest.mark.slow  # 64 samples' own gradients, as the README asks for
@pytest.mark.parametrize("arguments", commands("probe"), ids=" ".join)
def test_landscapes_are_measured(arguments, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    probe.main([str(run) if argument == "runs/NAME" else argument for argument in arguments])
    assert "beta_star/gradient/mse" in capsys.readouterr().out
    assert (tmp_path / "landscape.png").stat().st_size > 0


@pytest.mark.parametrize("arguments", commands("reproduce"), ids=" ".join)
def test_the_papers_tables_are_written(arguments, tmp_path, capsys):
    tiny = ["--steps", "2", "--betas", "0", "1", "--distance.samples", "16"]
    reproduce.main([*arguments, *tiny, "--storage", str(tmp_path), "--name", "all"])
    assert "two_moons is finished" in capsys.readouterr().out
    assert "SW1 against" in (tmp_path / "all" / "reproduction.md").read_text()


@pytest.mark.parametrize("arguments", commands("resend"), ids=" ".join)
def test_what_mlflow_missed_is_sent(arguments, tracking_uri, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    create(TINY, new(tmp_path / "runs" / "NAME", tracking_uri, "digits"))
    resend.main(arguments)
    assert capsys.readouterr().out == "nothing was waiting to be sent\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", commands("bench"), ids=" ".join)
def test_steps_are_timed(arguments, capsys):
    bench.main([*arguments, "--repeats", "1", "--batch", "16"])
    assert "to the first step" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("submit"), ids=" ".join)
def test_jobs_can_be_submitted(arguments):
    """What is submitted is a job that exists, with an experiment that resolves."""
    command = arguments[arguments.index("--") + 1 :]
    Submission(command=tuple(command), working_dir=ROOT)
    job, *options = command
    {"train": train, "tune": tune}[job].main([*options, "--dry-run"])
