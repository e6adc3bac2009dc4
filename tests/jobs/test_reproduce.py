"""The tables from the command line: a whole tiny reproduction, joined, tracked and rendered."""

import json
import re

import pytest
from mlflow import MlflowClient

from jobs import reproduce
from vamf.benchmarks import ensemble_step
from vamf.reproduction.objectives import OBJECTIVES

TINY = "--sets two_moons dgmm_4_redrawn --betas 0 1 --seeds 42 0 --steps 50 --trace-every 20"
TINY += " --distance.samples 128 --distance.directions 16 --distance.repetitions 2"


def test_a_reproduction_from_end_to_end(tmp_path, tracking_uri, capsys):
    place = ["--storage", str(tmp_path), "--name", "r", "--tracking", tracking_uri]
    argv = [*TINY.split(), "--device", "cpu", *place]
    first = argv.copy()
    first.remove("dgmm_4_redrawn")
    reproduce.main(first)
    reproduce.main(argv)  # joins: the finished set is skipped
    out = capsys.readouterr().out
    assert out.count("two_moons is finished") == out.count("dgmm_4_redrawn is finished") == 1
    folder = tmp_path / "r"
    found = json.loads((folder / "two_moons.json").read_text())
    assert found["trace_steps"] == [20, 40] and found["lost"] == []
    text = (folder / "reproduction.md").read_text()
    assert re.findall("^## (.*)", text, re.M) == ["two_moons", "dgmm_4_redrawn"]
    reproduce.main(["--table", str(folder)])
    assert capsys.readouterr().out == text
    check_runs(tracking_uri, folder, found)


def check_runs(uri, folder, found):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("vamf").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.directory = '{folder}'")
    assert parent.info.status == "FINISHED"
    assert "reproduction.md" in {f.path for f in client.list_artifacts(parent.info.run_id)}
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = {run.info.run_name: run for run in client.search_runs([experiment], query)}
    assert len(children) == 4
    run = children["two_moons β=1.000"]
    assert run.data.params["beta"] == "1.0" and run.data.params["data.name"] == "two_moons"
    mean = (found["sw1"][0][1] + found["sw1"][1][1]) / 2
    assert run.data.metrics["eval/sw1_n128"] == pytest.approx(mean)
    assert not [name for name in run.data.metrics if name.endswith("_se")]
    error = abs(found["sw1"][0][1] - found["sw1"][1][1]) / 2  # of the mean of two
    assert f"sw1_n128 ± {error:.2g}" in run.data.tags["error.eval"]
    assert run.data.tags["verdict.sw1"] in ("better", "worse", "indistinguishable")


@pytest.mark.slow
def test_all_objectives_from_end_to_end(tmp_path, tracking_uri, capsys):
    place = ["--storage", str(tmp_path), "--name", "r", "--tracking", tracking_uri]
    tiny = TINY.replace("--betas 0 1", "").replace(" dgmm_4_redrawn", "").replace("50", "6")
    argv = [*tiny.split(), "--device", "cpu", *place]
    reproduce.main([*argv, "--objectives", "MeanFlow", "semigroup"])
    reproduce.main([*argv, "--objectives", "all"])  # joins: the finished ones are skipped
    out = capsys.readouterr().out
    assert all(out.count(f"two_moons, {name} is finished") == 1 for name in OBJECTIVES)
    text = (tmp_path / "r" / "reproduction.md").read_text()
    rows = re.findall(r"^\| (.*?) +\|", text, re.M)
    assert rows == ["objective", *OBJECTIVES] and "of 18\ntests differ" in text
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("vamf").experiment_id
    children = client.search_runs([experiment], "tags.objective = 'flow matching'")
    (run,) = children
    assert run.info.run_name == "two_moons flow matching"
    assert run.data.params["evaluation.sampling_steps"] == "25"
    found = json.loads((tmp_path / "r" / "two_moons.flow_matching.json").read_text())
    mean = (found["sw1"][0][0] + found["sw1"][1][0]) / 2
    assert run.data.metrics["eval/sw1_n128"] == pytest.approx(mean)
    assert "verdict.sw1" not in run.data.tags


@pytest.mark.slow
def test_objectives_are_timed_against_single_runs(capsys, monkeypatch):
    monkeypatch.setattr(ensemble_step.speed, "__defaults__", (1,))
    argv = [*TINY.replace("--betas 0 1", "").split(), "--device", "cpu", "--bench"]
    reproduce.main([*argv, "--objectives", "MeanFlow", "alpha-Flow"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "two_moons, MeanFlow",
        "two_moons, alpha-Flow",
    ]
    assert all("2 members" in line and "times faster" in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--sets two_moon", "unknown set 'two_moon'; did you mean 'two_moons'?"),
        ("--betas 0 2", "beta must lie in [0, 1]; got 2.0"),
        ("--betas 0.5 1", "betas must contain 0, to compare with; got [0.5, 1.0]"),
        (
            "--objectives semigroup",
            "objectives must contain MeanFlow, to compare with; got semigroup",
        ),
        ("--seeds 1", "seeds must be at least 2, for standard errors; got [1]"),
        ("--together 0", "together must be at least 1 and minutes positive; got 0 and None"),
        ("--table nowhere", "no finished set in nowhere"),
    ],
)
def test_bad_input_costs_one_line_before_anything_starts(argv, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main([*argv.split(), "--storage", str(tmp_path)])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err == f"error: {line}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path, tracking_uri, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").touch()
    with pytest.raises(SystemExit):
        reproduce.main(f"--storage {tmp_path} --name a --tracking {tracking_uri}".split())
    assert capsys.readouterr().err.endswith("holds something else; choose another name\n")
