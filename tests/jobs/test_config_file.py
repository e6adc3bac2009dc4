"""``--config FILE``: under the options, over the preset, and what --dry-run prints is one."""

import json
from pathlib import Path

import pytest

from jobs import config_file, train
from vamf.experiment import Experiment
from vamf.presets import PRESETS


@pytest.mark.parametrize("end", ["json", "yaml"])
@pytest.mark.parametrize("name", PRESETS)
def test_what_a_dry_run_prints_is_read_as_the_same(
    name: str, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([name, "--dry-run"])
    file = tmp_path / f"a.{end}"
    file.write_text(capsys.readouterr().out)
    for preset in (name, "digits", "toy", "cifar10_cond"):
        assert config_file.applied(PRESETS[preset], file) == PRESETS[name].located()


def dry(argv: list[str], capsys: pytest.CaptureFixture[str]) -> Experiment:
    train.main([*argv, "--dry-run"])
    return Experiment.from_dict(json.loads(capsys.readouterr().out))


def test_a_file_is_over_the_preset_and_under_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("beta.value: 0.25\noptim: {lr: 3e-4, warmup: 7}\nmodel:\n  channels: 16\n")
    changes = {"beta.value": 0.25, "optim.lr": 3e-4, "optim.warmup": 9, "model.channels": 32}
    expected = PRESETS["digits"].override(changes).located()
    argv = ["--config", str(file), "--optim.warmup", "9", "--set", "model.channels=32"]
    assert dry(["digits", *argv], capsys) == expected


def test_options_are_those_of_the_kinds_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"times": {"max_gap": 0.5, "kind": "UniformTimes"}}')
    found = dry(["digits", f"--config={file}", "--times.max-gap", "0.25"], capsys)
    changes = {"times.kind": "UniformTimes", "times.max_gap": 0.25}
    assert found == PRESETS["digits"].override(changes).located()


def test_an_older_schema_is_migrated(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("schema: 2\nloss: {alpha: {}}\n")
    assert type(config_file.applied(PRESETS["digits"], file).loss).__name__ == "AlphaFlowLoss"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("optim.rl: 1", ": unknown setting 'optim.rl'; did you mean 'lr'?"),
        ("optim: {lr: fast}", ": optim.lr: input should be a valid number"),
        ("steps: true", ": steps must not be a truth value; got True"),
        ("beta.value: 2", ": beta must lie in [0, 1]; got 2"),
        ("batch", " cannot be read: it must hold settings by name; got 'batch'"),
        ("", " cannot be read: it must hold settings by name; got None"),
        ("a: [", " cannot be read: while parsing a flow node"),
        ("schema: 9", " cannot be read: an experiment's schema must be 1 to "),
        ("a: !!python/object/apply:os.getcwd []", " cannot be read: could not determine"),
    ],
)
def test_what_a_file_must_not_hold_is_one_line(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        train.main(["digits", "--dry-run", "--config", str(file)])
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {file}{line}")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match=f"^{path} cannot be read: "):
            config_file.read(path)
    (tmp_path / "a.json").write_bytes(b'{"a": \xff}')
    with pytest.raises(ValueError, match="can't decode"):
        config_file.read(tmp_path / "a.json")
