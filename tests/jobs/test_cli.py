"""Command lines: a mistake costs one line and status 2, before anything starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import ray
import torch
from helpers.machine import free_ports
from helpers.tiny import options

from jobs import train, tune
from vamf import presets
from vamf.experiment import Experiment


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may be running already for other tests; here it must not be started."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def mistake(job: ModuleType, argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a job ends; its status is 2 and it printed nothing else."""
    with pytest.raises(SystemExit) as ended:
        job.main(list(argv))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--set beta.value=2", "beta must lie in [0, 1]; got 2.0"),
        ("--set beta.value=-0.1", "beta must lie in [0, 1]; got -0.1"),
        ("--set optim.rl=1", "unknown setting 'optim.rl'; did you mean 'lr'?"),
        ("--set otpim.lr=1", "unknown setting 'otpim'; did you mean 'optim'?"),
        ("--set optim.lr=fast", "optim.lr: input should be a valid number"),
        ("--set stages=5", "stages must be a list of Stage; got 5"),
        ("--set steps", "steps: input should be a valid integer"),
        ("--batch 5 --scaling.workers 2", "batch must be divisible by the number of workers; "),
        ("--set data.kind=Toy", "points take an MLPConfig; got UNetConfig"),
        ("--set evaluation.distance.weights=x", "weights would be ignored"),
    ],
)
@pytest.mark.parametrize("job", [train, tune])
def test_what_an_experiment_cannot_be_is_refused(
    job: ModuleType, argv: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = {train: "digits", tune: "constant"}[job]
    arguments = [name, "--storage", str(tmp_path), *argv.split()]
    assert mistake(job, arguments, capsys).startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_come_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(train, ["digist"], capsys)
    assert line == "unknown preset 'digist'; did you mean 'digits'?"
    line = mistake(tune, ["schedule"], capsys)
    assert line == "unknown search space 'schedule'; did you mean 'schedules'?"
    line = mistake(tune, ["constant", "minst", "--trials", "3"], capsys)
    assert line == "unknown preset 'minst'; did you mean 'mnist'?"
    for option, near in {"stepps": "steps", "lr": "optim.lr", "log-evry": "log-every"}.items():
        line = mistake(train, ["digits", f"--{option}", "3"], capsys)
        assert line == f"unknown option --{option}; did you mean --{near}?"
    line = mistake(tune, ["--xyz"], capsys)
    assert line == "unknown option --xyz; --help lists all"
    line = mistake(train, ["digits", "--resume", "a"], capsys)
    assert line == "--resume FOLDER must stand without a name before it; got 'digits'"
    line = mistake(train, ["zzz"], capsys)
    assert line == f"unknown preset 'zzz'; known: {', '.join(presets.PRESETS)}"


@pytest.mark.parametrize("argv", [["of_time", "mnist"], ["of_time", "mnist", "--batch", "256"]])
def test_any_preset_can_be_searched(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    tune.main([*argv, "--dry-run"])
    shown = json.loads(capsys.readouterr().out)
    assert Experiment.from_dict(shown) == presets.PRESETS["mnist"].located()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["digits", "--beta.valeu", "0.5"], "unknown setting 'beta.valeu'; did you mean 'value'?"),
        (["digits", "--beta.value", "2"], "beta must lie in [0, 1]"),
        (["digits", "--proxy", "head"], "the proxy head and model.velocity_head go together"),
        (["digits", "--steps", "many"], "invalid"),
        (["digits", "--scaling.cpus", "0"], "scaling needs workers >= 0, cpus > 0"),
    ],
)
def test_a_wrong_option_is_explained(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    said = " ".join(err.replace("│", " ").split())
    assert named in said


@pytest.mark.parametrize("help_", [[], ["--help"]])
def test_without_a_name_the_names_are_listed(
    help_: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(help_)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in presets.PRESETS)


def test_a_folder_without_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(train, ["--resume", str(tmp_path / "a")], capsys)
    assert line == f"no run in {tmp_path / 'a'}: run.json is missing"
    line = mistake(tune, ["--resume", str(tmp_path / "a")], capsys)
    assert line == f"no search in {tmp_path / 'a'}: sweep.json is missing"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["digits"], ["constant"]])
def test_a_name_that_is_taken_is_refused(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    job = train if argv == ["digits"] else tune
    line = mistake(job, [*argv, "--storage", str(tmp_path), "--name", "a"], capsys)
    assert line == f"{tmp_path / 'a'} exists; choose another --name, or --resume it"


@pytest.mark.parametrize("job", [train, tune])
def test_mlflow_must_answer(
    job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    name = {train: "digits", tune: "constant"}[job]
    argv = [name, "--storage", str(tmp_path), "--tracking", f"http://ann:hunter2@{address}"]
    line = mistake(job, [*argv, "--scaling.workers", "1"], capsys)
    assert line.startswith("MLflow must answer before training; ")
    assert address in line
    assert "hunter2" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", [train, tune])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_ray_must_answer(
    job: ModuleType,
    scheme: str,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = f"{scheme}127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    name = {train: "digits", tune: "constant"}[job]
    argv = [name, "--storage", str(tmp_path), "--tracking", tracking_uri]
    line = mistake(job, [*argv, "--scaling.workers", "1"], capsys)
    assert line.startswith(f"no Ray cluster answers at RAY_ADDRESS={address}: ")
    assert list(tmp_path.iterdir()) == []  # nor is anything tracked that never began


def test_what_ray_says_of_an_address_is_one_line(
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(address: str) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", refuse)
    argv = ["digits", "--storage", str(tmp_path), "--tracking", tracking_uri]
    argv += ["--scaling.workers", "1"]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    line = mistake(train, argv, capsys)
    assert line.endswith("RAY_ADDRESS=auto: Could not find any running Ray instance. More.")
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")  # right for jobs.submit
    line = mistake(train, argv, capsys)
    assert line.startswith("RAY_ADDRESS must be HOST:6379 or ray://HOST:10001; got http://head")


def test_a_cluster_too_small_is_refused(
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    nodes = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in (2.0, 1.0)]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 9}}])
    argv = ["digits", "--storage", str(tmp_path), "--tracking", tracking_uri]
    for more, needs in {
        "--scaling.workers 4": "4 x 1 CPU, each on one node",
        "--scaling.workers 2 --scaling.cpus 2": "2 x 2 CPU, each on one node",
        "--scaling.workers 3 --scaling.placement STRICT_SPREAD": (
            "3 x 1 CPU, each on one node, placed STRICT_SPREAD"
        ),
    }.items():
        line = mistake(train, [*argv, "--set", "batch=96", *more.split()], capsys)
        assert line == (
            f"the cluster must have room for a run; it needs {needs}; nodes: 1 x 2 CPU, 1 x 1 CPU"
        )
    line = mistake(train, [*argv, "--scaling.workers", "1", "--scaling.gpus", "1"], capsys)
    assert line.endswith(
        "1 x 1 CPU and 1 GPU, each on one node; nodes: 1 x 2 CPU and 0 GPU, 1 x 1 CPU and 0 GPU"
    )


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("nothing://bucket/x", "no store at nothing://bucket/x/a: Protocol not known: nothing"),
        ("s3://", "the address of a store must name its bucket; got s3://"),
        ("s3://me:hunter2@/x", "the address of a store must name its bucket; got s3://...@/x"),
    ],
)
def test_a_store_of_no_use_is_refused_in_one_line(
    address: str, line: str, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["digits", "--storage", address, "--name", "a", "--tracking", tracking_uri]
    assert mistake(train, argv, capsys) == line
    assert mistake(train, ["--resume", f"{address}/a"], capsys).startswith(line[:20])


@pytest.mark.parametrize("job", [train, tune])
def test_a_fid_without_its_weights_is_refused(
    job: ModuleType,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    storage, name = tmp_path / "runs", {train: "digits", tune: "constant"}[job]
    argv = [name, "--storage", str(storage), "--tracking", tracking_uri]
    line = mistake(job, [*argv, "--set", "evaluation.distance.extractor=inception"], capsys)
    assert line.startswith("FID needs the Inception weights")
    assert not storage.exists()


def test_a_search_needs_its_first_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("--trials 1", "--seeds 0"):
        line = mistake(tune, ["constant", "--storage", str(tmp_path), *wrong.split()], capsys)
        assert line.startswith("a search needs at least 2 trials, ")


@pytest.mark.parametrize(("job", "name"), [(train, "digits"), (train, "toy"), (tune, "schedules")])
def test_a_dry_run_prints_an_experiment(
    job: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [name, "--dry-run", "--storage", str(tmp_path), "--beta.value", "0.5"]
    job.main([*argv, "--set", "loss.weight.p=0.25"])
    out, err = capsys.readouterr()
    assert err == ""
    experiment = Experiment.from_dict(json.loads(out))
    assert (experiment.beta.value, experiment.loss.weight.p) == (0.5, 0.25)
    assert list(tmp_path.iterdir()) == []


def test_options_and_settings_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["digits", "--dry-run", *options({"beta.value": 0.5})])
    by_setting = capsys.readouterr().out
    argv = [
        "--model.channels",
        "8",
        "--batch",
        "16",
        "--steps",
        "6",
        "--log-every",
        "1",
        "--optim.warmup",
        "0",
    ]
    argv += ["--evaluation.every", "6", "--evaluation.variance-samples", "8"]
    argv += ["--evaluation.gradient-batches", "2", "--evaluation.distance.samples", "40"]
    train.main(
        [
            "digits",
            "--dry-run",
            *argv,
            *["--checkpoint.every", "2", "--beta.value", "0.5", "--ema", "0.9"],
        ]
    )
    assert capsys.readouterr().out == by_setting
