"""Classes and values of a user's own modules: found by name, or refused in a line."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers.tiny import SETTINGS, TINY
from helpers.tree import ROOT

from jobs import export
from vamf import user_modules
from vamf.data.source import DataSource
from vamf.experiment import Experiment
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.objectives.terms import Draws, ObjectiveRule, squared_norm
from vamf.inference.load import load
from vamf.models.config import NetworkConfig
from vamf.presets import PRESETS
from vamf.training.loop import Session, train
from vamf.training.step.networks import build_networks

CPU = torch.device("cpu")
SHAPES = "jobs/examples/shapes.py"

MINE = """
from dataclasses import dataclass
from vamf.models.mlp import MLPConfig
from vamf.models.config import NetworkConfig

@dataclass(frozen=True, kw_only=True)
class Mine(NetworkConfig):
    width: int = 8

    def build(self, shape):
        return MLPConfig(hidden=(self.width,)).build(shape)

@dataclass(frozen=True, kw_only=True)
class Lacking:
    classes: int = 0

@dataclass
class Open:
    width: int = 8

class Plain:
    pass

VALUE = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "mine_a.py").write_text(MINE)
    return tmp_path


@pytest.mark.parametrize("name", ["mine_a:Mine", "mine_a.py:Mine", "./mine_a.py:Mine"])
def test_an_experiment_with_a_network_of_ones_own_is_read_as_it_was_written(
    name: str, here: Path
) -> None:
    experiment = TINY.override({"model.kind": name, "model.width": 5})
    assert experiment.to_dict()["model"] == {"kind": name, "width": 5}
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    assert experiment.override({"model.width": 6}).model == replace(experiment.model, width=6)
    assert experiment.model.build((1, 8, 8))(torch.zeros(2, 1, 8, 8), *torch.zeros(2, 2)).shape
    user_modules.require(type(experiment.model), NetworkConfig, name)
    assert pickle.loads(pickle.dumps(experiment)) == experiment


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nowhere:Mine", "a module 'nowhere' must be in .* or installed"),
        ("nowhere.py:Mine", "a file nowhere.py must be in .* or in a folder of PYTHONPATH"),
        ("mine_a:Min", "mine_a must have 'Min'; it has Mine, Lacking, Open, Plain, VALUE"),
        ("mine_a:Lacking", "mine_a:Lacking lacks guided, velocity_head, build of the interface "),
        ("mine_a:Open", "mine_a:Open must be a frozen dataclass"),
        ("mine_a:Plain", "mine_a:Plain must be a frozen dataclass; got <class"),
        ("mine_a:VALUE", "mine_a:VALUE must be a frozen dataclass; got 3"),
        (":Mine", "a name must be module:object or path/file.py:object; got ':Mine'"),
        ("broken:X", "broken cannot be imported: NameError: name 'nothing' is not defined"),
        ("needs:X", "needs cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        ("broken.py:X", "broken.py cannot be imported: NameError: "),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name: str, line: str, here: Path) -> None:
    (here / "broken.py").write_text("nothing")
    (here / "needs.py").write_text("import absent")
    with pytest.raises(ValueError, match=line) as raised:
        TINY.override({"model.kind": name})
    assert "\n" not in str(raised.value)


def test_a_field_without_an_interface_takes_no_class_of_ones_own(here: Path) -> None:
    with pytest.raises(
        ValueError, match=r"optim\.kind must be one of Optimiser; got 'mine_a:Mine'"
    ):
        TINY.override({"optim.kind": "mine_a:Mine"})


def test_a_class_that_other_processes_cannot_import_is_not_written() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inside(NetworkConfig):
        pass

    with pytest.raises(ValueError, match="Inside must be in a module, at its top level"):
        replace(TINY, model=Inside()).to_dict()


def test_a_class_of_the_main_program_is_named_by_its_file(here: Path) -> None:
    program = MINE + "from vamf import user_modules\nprint(user_modules.name_of(Mine))\n"
    (here / "main.py").write_text(program)
    run = [sys.executable, "main.py"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    found = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    name = found.stdout.strip()
    assert name.endswith("main.py:Mine") and user_modules.load(name).__name__ == "Mine"


def test_a_relative_path_is_found_from_another_folder_by_the_path_of_modules(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(here))
    assert user_modules.load("mine_a.py:VALUE") == 3


def test_the_interfaces_say_what_their_members_are() -> None:
    asked = {"shape", "classes", "has_exact_velocity", "velocity", "load"}
    assert {*user_modules.members(DataSource)} == asked
    assert {*user_modules.members(NetworkConfig)} == {"classes", "guided", "velocity_head", "build"}
    rule = {"weight", "learns_velocity", "mixes_tangent", "has_landscape", "probes", "moves"}
    assert {*user_modules.members(ObjectiveRule)} == rule | {"__call__"}


def test_the_fast_path_refuses_a_network_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shapes = user_modules.load(f"{SHAPES}:SHAPES")
    with pytest.raises(ValueError, match=r"compute\.compile carries tangents through vamf's own"):
        shapes.override({"compute.compile": True})


@dataclass(frozen=True, kw_only=True)
class Own(NetworkConfig):
    """A network of a user's own."""

    classes: int = 0
    guided: bool = False
    velocity_head: bool = False
    made: Callable[[], torch.nn.Module]

    def build(self, shape: tuple[int, ...]) -> torch.nn.Module:
        return self.made()


TAKEN = {
    "forward": "z, r, t, y=None, kappa=None",
    "velocity": "z, t, y=None, kappa=None, r=None",
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, None),
        ({"velocity": "*a, **k"}, None),
        (
            {"velocity": "z, t, y, kappa"},
            r"y, kappa, r=r\) with head.every_r; got velocity\(z, ",
        ),
        ({"velocity": "z, t, y, kappa, r"}, r"velocity\(z, t, y, kappa\); got velocity\(z, t, y,"),
        ({"velocity": "z, t, r=None"}, r"got velocity\(z, t, r=None\): too many positional arg"),
        ({"velocity": None}, r"must have a method velocity\(z, t, y, kappa\); it has no velocity"),
        (
            {"forward": "z, t"},
            r"Net must take forward\(z, r, t, y, kappa\); got forward\(z, t",
        ),
    ],
)
def test_a_network_that_does_not_take_its_inputs_is_refused_before_it_trains(
    changes: dict[str, str | None], line: str | None
) -> None:
    wide = {"classes": 10, "guided": True, "velocity_head": True}
    settings = {**{f"model.{name}": value for name, value in wide.items()}, "proxy": "head"}
    guided = {"guidance.max_scale": 2.0, "head.every_r": True}
    methods = {
        name: eval(f"lambda self, {taken}: z")
        for name, taken in (TAKEN | changes).items()
        if taken is not None
    }
    Net = type("Net", (torch.nn.Module,), methods)
    own = Own(classes=10, guided=True, velocity_head=True, made=Net)
    experiment = replace(TINY.override(settings | guided), model=own)
    if line is None:
        experiment.prepare()
        build_networks(experiment, (1, 8, 8), CPU)
        return
    for where in (experiment.prepare, lambda: build_networks(experiment, (1, 8, 8), CPU)):
        with pytest.raises(ValueError, match=line) as refused:
            where()
        assert "\n" not in str(refused.value)


def test_a_network_that_cannot_be_built_without_memory_is_checked_where_it_is_built() -> None:
    def made() -> torch.nn.Module:
        assert torch.ones(2).sum().item() == 2  # impossible on the meta device
        return type("Net", (torch.nn.Module,), {"forward": lambda self, z: z})()

    experiment = replace(TINY, model=Own(made=made))
    experiment.prepare()
    with pytest.raises(ValueError, match=r"Net must take forward\(z, r, t\)"):
        build_networks(experiment, (1, 8, 8), CPU)


def test_the_loss_of_the_example_is_mean_flows_and_flow_matching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    loss = user_modules.load(f"{SHAPES}:WithBoundary")(boundary=0.25)
    g = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 16, 3, generator=g, dtype=torch.float64)
    r, t = torch.rand(2, 16, generator=g, dtype=torch.float64).sort(0).values
    draws = Draws(x, e, r, t)

    def u(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return z * (1 + r - t * t)[:, None]

    given = {"beta": 0.0, "v_hat": lambda z, t: z}
    z = x + t[:, None] * (e - x)
    boundary = squared_norm(z * (1 + t - t * t)[:, None] - (e - x)).mean()
    expected = MeanFlowLoss()(u, draws, **given).loss + 0.25 * boundary
    torch.testing.assert_close(loss(u, draws, **given).loss, expected, rtol=1e-12, atol=0)


def test_an_export_of_a_network_of_ones_own_needs_its_module(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {n: v for n, v in SETTINGS.items() if not n.startswith("model.")}
    own = PRESETS["digits"].override({**few, "model.kind": "mine_a.py:Mine", "model.width": 4})
    (tmp_path / "run").mkdir()
    train(own, Session(directory=tmp_path / "run"))
    export.main([str(tmp_path / "run"), "--out", "model.safetensors"])
    found, kept = (load(tmp_path / f, torch.device("cpu")) for f in ("model.safetensors", "run"))
    assert found.experiment == kept.experiment == own
    for a, b in zip(found.ema.parameters(), kept.ema.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    (here / "mine_a.py").unlink()
    with pytest.raises(ValueError, match=r"a file mine_a\.py must be in "):
        load(tmp_path / "model.safetensors", torch.device("cpu"))
