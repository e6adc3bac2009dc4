"""A path means what it meant where the job was started, in whatever folder a process works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pictures import write_tiny
from helpers.tiny import TINY, tracked
from helpers.tree import ROOT
from mlflow import MlflowClient

from jobs import reproduce, train, tune
from jobs.cli import changed
from vamf import cache, tracking
from vamf.cluster.ray import connect
from vamf.cluster.submission.submit import Submission
from vamf.cluster.train.tracked_run import Launch, create, new, resumed
from vamf.experiment import Experiment
from vamf.files import local
from vamf.presets import PRESETS
from vamf.training.checkpoints.checkpoint import CheckpointFolder
from vamf.training.loop import Session
from vamf.training.loop import train as train_in_place


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the test works in, which is also the user's home."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another folder, such as Ray's."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


SETTINGS = {
    "data.root": ["mnist", "data.root={}"],
    "data.images": ["imagenet_dit_b4", "data.images={}"],
    "data.test": ["imagenet_dit_b4", "data.test={}"],
    "data.vae": ["imagenet_dit_b4", "data.vae={}"],
    "reference": ["digits", "proxy=reference", "reference={}"],
    "evaluation.distance.reference": ["digits", "evaluation.distance.reference={}"],
    "evaluation.distance.weights": [
        *("digits", "evaluation.distance.extractor=inception", "evaluation.distance.weights={}"),
    ],
}
"""For each path of an experiment, a preset and what sets it."""


@pytest.mark.parametrize("written", ["x/y", "~/x/y"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_path_of_an_experiment_is_absolute(
    name: str, written: str, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (start / "x" / "y").mkdir(parents=True)
    preset, *settings = SETTINGS[name]
    train.main([preset, "--dry-run", "--set", *(s.format(written) for s in settings)])
    shown = Experiment.from_dict(json.loads(capsys.readouterr().out)).flatten()
    assert shown[name] == str(start / "x" / "y")


def test_no_path_of_a_preset_depends_on_the_folder(start: Path) -> None:
    for preset in PRESETS.values():
        paths = {
            n: v for n, v in preset.located().flatten().items() if n in ("data.root", "data.images")
        }
        assert all(path.startswith("/") for path in paths.values()), paths


def test_what_is_no_path_of_this_machine_stays(start: Path) -> None:
    stored = PRESETS["digits"].override({"proxy": "reference", "reference": "s3://bucket/runs/a"})
    assert stored.located() == stored
    latents = PRESETS["imagenet_dit_b4"]
    assert latents.located().data.vae == latents.data.vae  # a repository of the hub


def test_a_home_that_nobody_has_is_one_line(
    start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["digits", "--storage", "~nobody-has-this-name/runs"])
    assert ended.value.code == 2
    line = "error: ~ must stand for a user's home; got ~nobody-has-this-name/runs\n"
    assert capsys.readouterr().err == line
    with pytest.raises(ValueError, match="~ must stand for a user's home"):
        changed(PRESETS["mnist"], ["data.root=~nobody-has-this-name/x"])


def test_home_is_expanded_in_every_option(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local(Path("~/runs")) == start / "runs"
    monkeypatch.setenv("VAMF_CACHE", "~/kept")
    assert cache.folder() == start / "kept"
    with pytest.raises(SystemExit):  # after it has looked into the folder
        reproduce.main(["--table=~/none"])
    assert not (start / "~").exists()


def test_the_environments_folders_are_settled_for_rays_processes(
    start: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's processes take over the environment and work in other folders."""
    for name in cache.FOLDERS:
        monkeypatch.setenv(name, f"of/{name}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: monkeypatch.chdir(elsewhere))
    connect.connect()
    assert cache.folder() == start / "of" / "VAMF_CACHE"


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ("sqlite:///x.db", "sqlite:///{}/x.db"),
        ("sqlite:///a:b/x.db?timeout=9", "sqlite:///{}/a:b/x.db?timeout=9"),
        ("sqlite+pysqlite:///x.db", "sqlite+pysqlite:///{}/x.db"),
        ("sqlite:///~/x.db", "sqlite:///{}/x.db"),
        ("sqlite:////a/x.db", "sqlite:////a/x.db"),
        ("mlruns", "{}/mlruns"),
        ("~/mlruns", "{}/mlruns"),
        ("file:mlruns", "file://{}/mlruns"),
        ("file:///a/mlruns", "file:///a/mlruns"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("databricks", "databricks"),
        ("uc:profile", "uc:profile"),
    ],
)
def test_an_address_of_a_file_is_absolute(
    given: str, settled: str, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.address(Path("runs"), given) == settled.format(start)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking.address(Path("runs")) == settled.format(start)


def test_a_searchs_trials_are_in_the_searchs_database_and_find_the_data(
    start: Path,
    elsewhere: Path,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_tiny(start / "data")
    shutil.copy(tracking_uri.removeprefix("sqlite:///"), start / "x.db")  # tables take seconds
    monkeypatch.setattr(connect, "prepare", lambda scaling, *_, **__: scaling)
    argv = ["constant", "mnist", "--tracking", "sqlite:///x.db", "--storage", "runs"]
    sweep = tune.new(*tune.read([*argv, "--set", "evaluation.distance.samples=40"]))
    assert sweep is not None
    tracking.rejoin(sweep.parent)
    monkeypatch.chdir(elsewhere)  # as a trial's process works in Ray's folders
    trial = Launch(
        directory=sweep.directory / "t000" / "seed_0",
        uri=sweep.parent.uri,
        name="t0",
        preset="mnist",
        parent=sweep.parent,
    )
    run = create(sweep.experiment, trial)
    assert MlflowClient(f"sqlite:///{start}/x.db").get_run(run.run_id).info.run_name == "t0"
    assert len(sweep.experiment.data.load("train")) == 64
    assert list(elsewhere.iterdir()) == []


def older_run(folder: Path, uri: str) -> Experiment:
    """A run as earlier versions left it: its files hold a relative path."""
    relative = TINY.override({"proxy": "reference", "reference": "teacher", "steps": 2})
    create(relative, new(folder, uri, "digits"))
    train_in_place(relative, Session(directory=folder))
    return relative


def test_a_run_that_holds_a_relative_path_goes_on(
    start: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_place(TINY.override({"steps": 2}), Session(directory=start / "teacher"))
    relative = older_run(start / "runs" / "a", tracking_uri)
    experiment, again = resumed(start / "runs" / "a", tracking_uri)
    assert experiment == relative.override({"reference": str(start / "teacher")})
    create(experiment, again)  # is the same run still
    (run,) = tracked(tracking_uri, start / "runs" / "a")
    assert run.info.status == "RUNNING"


def test_another_path_is_another_experiment(start: Path, tmp_path: Path) -> None:
    """What counts as the same is a relative path and the absolute one that ends like it."""
    folder = CheckpointFolder(path=tmp_path / "checkpoints", keep=1, best_by="x")
    relative = PRESETS["mnist"].override({"data.root": "a/data"})
    saved = folder.save(relative, {"step": 1}, {})
    saved.require(relative.override({"data.root": "/x/a/data"}))
    for other in ("/x/b/data", "b/data", "/data"):
        with pytest.raises(ValueError, match=r"another experiment: data\.root a/data there"):
            saved.require(relative.override({"data.root": other}))
    with pytest.raises(ValueError, match=r"another experiment: data\.download"):
        saved.require(relative.override({"data.download": True}))


@pytest.mark.parametrize("given", ["sqlite:///x.db", "mlruns", "file:mlruns", "sqlite:///~/x.db"])
def test_a_job_whose_runs_ray_would_delete_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = ROOT
    command = ("train", "mnist", "--storage", "/shared/runs", "--set", "data.root=data")
    with pytest.raises(ValueError, match=r"absolute path that all nodes see.*got " + given):
        Submission(command=(*command, f"--tracking={given}"), working_dir=root)
    with pytest.raises(ValueError, match="absolute path that all nodes see"):
        Submission(command=command, working_dir=root, env={"MLFLOW_TRACKING_URI": given})
    shared = Submission(command=(*command, "--tracking=sqlite:////shared/x.db"), working_dir=root)
    assert shared.entrypoint.endswith("data.root=data --tracking=sqlite:////shared/x.db")


SMALL = (
    *("model.channels=8", "model.multipliers=[1,1]", "model.attention=[]", "model.blocks=1"),
    *("batch=16", "steps=2", "log_every=1", "evaluation.every=2", "checkpoint.every=2"),
    *("evaluation.variance_samples=8", "evaluation.gradient_batches=2"),
    *("evaluation.distance.samples=40", "optim.warmup=0"),
)
"""What makes a preset of images small."""


@pytest.mark.slow  # starts Ray
def test_a_search_with_relative_paths_on_a_terminal_of_ascii(start: Path) -> None:
    """Its trials, in Ray's folders, find data and MLflow; each is trained once."""
    write_tiny(start / "data")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONIOENCODING": "ascii", "VAMF_CACHE": "kept", "PYTHONPATH": str(ROOT)}
    environment["MLFLOW_TRACKING_URI"] = "sqlite:///x.db"
    words = ["constant", "mnist", "--trials", "2", "--storage=~/runs", "--name", "a"]
    for setting in SMALL:
        words += ["--set", setting]
    command = [sys.executable, "-m", "jobs.tune", *words, "--set=data.root=~/../start/data"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert "trial 0  \\u03b2=0.000  loss_variance " in done.stdout
    assert f"--backend-store-uri sqlite:///{start}/x.db " in done.stdout
    client = MlflowClient(f"sqlite:///{start}/x.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "vamf"]
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3  # the search and its trials
    made = {path.name for path in start.iterdir() if not path.name.startswith(".")}
    assert made == {"data", "kept", "mlartifacts", "runs", "x.db", "x.db.lock"}
