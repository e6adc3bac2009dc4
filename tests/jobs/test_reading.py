"""What is said on a command line counts, however often its option is named."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import tyro

from jobs import bench, encode, evaluate, reading, reproduce, submit, train, tune
from vamf.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Inner:
    numbers: tuple[int, ...] = (1, 2)
    pair: tuple[int, int] = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Options:
    where: Annotated[str, tyro.conf.Positional] = "nowhere"
    set: tuple[str, ...] = ()
    some_names: tuple[str, ...] | None = None
    inner: Inner = field(default_factory=Inner)
    steps: int = 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--set a=1 b=2", Options(set=("a=1", "b=2"))),
        ("--set a=1 --set b=2", Options(set=("a=1", "b=2"))),
        ("--set=a=1 --set=b=2", Options(set=("a=1", "b=2"))),
        ("--set a=1 b=2 --steps 3 --set=c=3", Options(set=("a=1", "b=2", "c=3"), steps=3)),
        ("--set=a=1 here --set b=2", Options(where="here", set=("a=1", "b=2"))),
        ("here --set a=--b", Options(where="here", set=("a=--b",))),
        ("--some-names a --some_names b", Options(some_names=("a", "b"))),
        ("--inner.numbers 3 --inner.numbers 4 5", Options(inner=Inner(numbers=(3, 4, 5)))),
        ("--inner.pair 3 4 --inner.pair 5 6", Options(inner=Inner(pair=(5, 6)))),
        ("--steps 3 --steps 4", Options(steps=4)),  # one value, as with any program
        ("--set a=1 --set", Options(set=("a=1",))),
    ],
)
def test_a_list_may_be_given_in_parts(argv: str, expected: Options) -> None:
    assert reading.read(Options, argv.split()) == expected


def test_no_option_of_a_program_is_unknown() -> None:
    """All that tyro offers, in both spellings, is known before tyro reads it."""
    for options in (submit.Options, reproduce.Options, bench.Options, encode.Options):
        known = set(reading.dotted(options))
        shown = [f"--{name.replace('_', '-')}" for name in known]
        reading.require_known([*shown, "--help", "--", "x"], known)
    known = set(reading.dotted(reproduce.Options))
    assert {"sets", "device", "storage"} <= known
    reading.require_known(["--no-bench", "--compute.no-compile"], {"bench", "compute.compile"})


@pytest.mark.parametrize(("job", "named"), [(train, "digits"), (evaluate, ""), (tune, "constant")])
def test_options_that_select_stand_in_the_help(
    job: ModuleType, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        job.main([*named.split(), "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    options = ("--images", "--check") if job is evaluate else ("--resume", "--config", "--dry-run")
    assert all(f"{option} " in said for option in options)


def test_every_setting_counts(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["digits", "--dry-run", "--set", "optim.lr=0.5", "--batch", "32", "--set", "steps=7"]
    train.main([*argv, "--model.attention", "8", "--model.attention", "4"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["optim"]["lr"], shown["steps"], shown["batch"]) == (0.5, 7, 32)
    assert shown["model"]["attention"] == [8, 4]
    assert shown["data"] == PRESETS["digits"].to_dict()["data"]


KINDS = "--data.kind ImageFolder --model.kind=DiTConfig --times.kind UniformTimes"
SHARED = (
    "--data.root photos --data.size 28 --data.channels 1 --data.classes 10 "
    "--model.classes 10 --guidance.omega 1 --model.patch 7 --loss.weight.p 0 "
    "--times.prob-equal 0.5 --beta.value 0 --compute.no-compile"
)
"""Options of which some are also fields of the kinds that the preset mnist has."""


@pytest.mark.parametrize("kinds_first", [True, False])
def test_options_beside_a_kind_are_those_of_that_kind(kinds_first: bool) -> None:
    words = f"{KINDS} {SHARED}" if kinds_first else f"{SHARED} {KINDS}"
    _, _, found = train.read(["mnist", *words.split(), "--set", "loss.kind=SemigroupLoss"])
    shown = found.to_dict()
    assert (shown["data"]["kind"], found.data.root) == ("ImageFolder", Path("photos").absolute())
    assert (shown["model"]["kind"], shown["model"]["classes"]) == ("DiTConfig", 10)
    assert (shown["loss"]["kind"], shown["loss"]["weight"]["p"]) == ("SemigroupLoss", 0)
    assert (shown["times"]["kind"], shown["times"]["prob_equal"]) == ("UniformTimes", 0.5)


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--data.no-download", "data.download=false"),
        ("--data.no_download", "data.download=false"),
        ("--data.download", "data.download=true"),
        ("--model.hidden 64", "model.hidden=[64]"),
        ("--model.hidden 64 32", "model.hidden=[64, 32]"),
        ("--reference None", "reference=null"),
        ("--no-init", "init=false"),
        ("--init=a=b", "init=a=b"),
    ],
)
def test_options_of_the_experiment_are_settings_where_there_are_any(
    option: str, setting: str
) -> None:
    own = {"data.download", "reference", "init"}
    known = own | {"set", "name"}
    words = ["--set", "a=1", *option.split(), "--name", "x"]
    found = reading.with_settings(words, known, own, {"set", "hidden"})
    assert found == [f"--set={setting}", "--set", "a=1", "--name", "x"]
    alone = reading.with_settings([*option.split(), "--name", "x"], known, own, {"hidden"})
    assert alone[0] == (f"--set={setting}" if "hidden" in option else option.split()[0])


def test_options_that_need_each_other_are_checked_together() -> None:
    guided = ["--model.classes", "10", "--guidance.omega", "2", "--steps", "7"]
    head = ["--proxy=head", "--model.velocity-head", "--model.kind", "DiTConfig"]
    _, _, found = train.read(["digits", *guided, *head, "--model.patch", "2"])
    assert found.guidance is not None and found.guidance.omega == 2
    assert (found.model.classes, found.proxy, found.steps) == (10, "head", 7)


def test_a_job_gets_all_variables_and_packages() -> None:
    argv = ["--env", "A=1", "--env", "B=2", "--packages", "x", "--detach", "--packages", "y", "z"]
    found = reading.read(submit.Options, argv)
    assert (found.env, found.packages, found.detach) == (("A=1", "B=2"), ("x", "y", "z"), True)
