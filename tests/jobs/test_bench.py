"""``jobs.bench``: tables of this machine, as text and as JSON, on real steps and real runs."""

import json

import pytest
import torch
from helpers.tiny import SETTINGS

from jobs import bench
from vamf.benchmarks import sharing, whole_runs
from vamf.benchmarks.step_time import Subject
from vamf.presets import PRESETS

SMALL = [f"{name}={json.dumps(value)}" for name, value in SETTINGS.items()]
IN_PROCESS = ["step", "sampling", "evaluation", "checkpoint", "data"]


def measured(argv, out, capsys):
    bench.main([*argv, "--device", "cpu", "--out", str(out)])
    sections = json.loads(out.read_text())["sections"]
    return capsys.readouterr().out, {name: table["rows"] for name, table in sections.items()}


def mistake(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main([str(argument) for argument in argv])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.slow  # all that is measured
def test_digits_are_measured_and_compared(tmp_path, capsys):
    argv = ["digits", "--repeats", "1", "--only", *IN_PROCESS, "--set", *SMALL]
    out, found = measured(argv, tmp_path / "a.json", capsys)
    assert [*found] == IN_PROCESS and "digits, batch 16, CPU" in out
    assert found["step"]["flow matching (r = t throughout)"]["ratio"] == 1
    assert len(found["step"]) == 11 and found["step"]["peak memory of the process"]["value"] > 0
    assert [*found["sampling"]] == ["1-step average"]
    assert {"features of digits_cnn64_v1", "one evaluation"} < found["evaluation"].keys()
    share = found["evaluation"]["its share of a run, every 6 steps"]
    assert 0 < share["value"] < 100 and share["unit"] == "%"
    assert all(row["value"] > 0 for rows in found.values() for row in rows.values())
    argv = ["digits", "--repeats", "1", "--only", "step", "--set", *SMALL]
    argv += ["--baseline", str(tmp_path / "a.json")]
    again, _ = measured(argv, tmp_path / "b.json", capsys)
    assert "before: digits, batch 16, CPU" in again and "sampling" not in again
    assert again.count("1.00 x   before") == 1 and again.count(" before ") == 11


def test_points_are_measured_with_the_sampler_of_their_own(tmp_path, capsys):
    argv = ["toy", "--repeats", "1", "--batch", "16", "--only", *IN_PROCESS[1:], "--set"]
    settings = ["evaluation.sampler=heun", "evaluation.sampling_steps=3"]
    settings += ["evaluation.distance.samples=64", "evaluation.variance_samples=8"]
    out, found = measured([*argv, *settings], tmp_path / "a.json", capsys)
    assert [*found] == IN_PROCESS[1:]
    assert [*found["sampling"]] == ["1-step average", "3-step heun, the preset's own"]
    assert "features" not in out and "64 at once" in out and "the data are in memory" in out


@pytest.mark.slow  # three processes that each import torch
def test_trainings_at_the_same_time_are_measured(tmp_path, capsys):
    argv = ["toy", "--repeats", "1", "--batch", "16", "--only", "sharing", "--trainings", "1", "2"]
    out, found = measured(argv, tmp_path / "a.json", capsys)
    rows = found["sharing"]
    assert [*rows] == ["1 training", "2 trainings"] and rows["1 training"]["ratio"] == 1
    assert all(row["value"] > 0 for row in rows.values()) and "1 thread each" in out


@pytest.mark.slow  # two processes that each import torch
def test_trainings_that_fail_are_not_waited_for(tmp_path):
    """The folder of images is away when they begin."""
    data = {"data.kind": "ImageFolder", "data.root": str(tmp_path / "away"), "data.size": 8}
    subject = Subject(PRESETS["digits"].override(data), torch.device("cpu"), 1)
    with pytest.raises(ValueError, match=r"2 trainings at once: .*away"):
        sharing._rates(subject, 2, 1, 0.1)


@pytest.mark.slow  # two runs of jobs.train from the command on
def test_a_start_is_timed(tmp_path, capsys):
    argv = ["toy", "--repeats", "1", "--batch", "16", "--only", "start"]
    _, found = measured(argv, tmp_path / "a.json", capsys)
    (row,) = found["start"].items()
    assert row[0] == "from the command to the first step" and row[1]["value"] > 0


@pytest.mark.slow
def test_workers_are_compared_by_their_own_logs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(whole_runs, "LOGS", 5)
    argv = ["toy", "--repeats", "1", "--batch", "16", "--only", "scaling", "--workers", "1", "2"]
    out, found = measured(argv, tmp_path / "a.json", capsys)
    one, two = found["scaling"].values()
    assert [*found["scaling"]] == ["1 worker, batch 16", "2 workers, batch 32"]
    assert one["ratio"] == 1 and two["ratio"] == pytest.approx(two["value"] / one["value"])
    assert "they share" in out


def test_mistakes_are_one_line(tmp_path, capsys):
    assert mistake(["digist"], capsys) == "unknown preset 'digist'; did you mean 'digits'?"
    assert mistake(["toy", "--workers", "0"], capsys) == "workers must be at least 1; got (0,)"
    assert mistake(["toy", "--trainings", "0"], capsys) == "trainings must be at least 1; got (0,)"
    assert "no --only, --workers" in mistake(["toy", "--check", "--only", "step"], capsys)
    (tmp_path / "old.json").write_text('{"seconds": {}}')
    line = mistake(["toy", "--baseline", tmp_path / "old.json"], capsys)
    assert line.endswith("must be a file that python -m jobs.bench wrote with --out")


@pytest.mark.slow  # a run of jobs.train
def test_a_run_that_ends_is_reported_in_its_own_words(monkeypatch, capsys):
    monkeypatch.setattr(whole_runs, "_settings", lambda *_: ["batch=0"])
    argv = ["toy", "--device", "cpu", "--repeats", "1", "--batch", "8", "--only"]
    line = mistake([*argv, "start"], capsys)
    assert line == "not measured: python -m jobs.train ended: batch must be at least 1; got 0"
    bench.main([*argv, "checkpoint", "start"])  # what can be measured is
    out = capsys.readouterr().out
    assert "written in the loop" in out and f"  {line}" in out
