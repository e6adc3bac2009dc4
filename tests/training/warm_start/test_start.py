"""Runs that start from the weights of another one."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny import checkpoint, same
from helpers.toy import TOY, Died, dies_at

from vamf.data.mixtures import Mixture
from vamf.experiment import Experiment
from vamf.inference.export import export
from vamf.inference.load import load, load_trainer
from vamf.rng import generator
from vamf.training.evaluation import evaluate
from vamf.training.loop import Session, train
from vamf.training.warm_start.start import resolved

CPU = torch.device("cpu")
FLOW = {"times.prob_equal": 1.0}
DDPM = FLOW | {
    "loss.kind": "DDPM",
    "times.kind": "UniformTimes",
    "evaluation.sampler": "ddim",
    "beta.value": 0,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of MeanFlow, one of flow matching and a DDPM."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (("mean_flow", {}), ("flow", FLOW), ("ddpm", DDPM)):
        train(TOY.override(changes), Session(directory=folder / name))
    return folder


def started(source, directory, changes=None, *, die_at=None):
    """A run that starts from a source; returns its notes by name."""
    notes: dict[str, str] = {}
    session = Session(directory=directory, report=dies_at(die_at), note=notes.__setitem__)
    train(resolved(TOY.override({"init": str(source), "seed": 1, **(changes or {})})), session)
    return notes


@pytest.mark.parametrize("kind", ["run", "checkpoint", "state", "export"])
def test_both_networks_start_as_the_sources_moving_average(kind, runs, tmp_path):
    saved = checkpoint(runs / "mean_flow", 12).path
    source = {"run": runs / "mean_flow", "checkpoint": saved, "state": saved / "state.pt"}
    if kind == "export":
        source[kind] = tmp_path / "model.safetensors"
        export(runs / "mean_flow", source[kind])
    notes = started(source[kind], tmp_path / "run")
    first = checkpoint(tmp_path / "run", 0)
    state, before = first.load(), checkpoint(runs / "mean_flow", 12).load()["ema"]
    averaged = {name.removeprefix("module."): value for name, value in before.items()}
    del averaged["n_averaged"]
    assert same(state["net"], averaged)
    assert same({f"module.{n}": v for n, v in averaged.items()}, without_count(state["ema"]))
    assert state["ema"]["n_averaged"] == 1 and state["optimiser"]["state"] == {}
    named = source[kind] if kind == "export" else saved
    assert notes == {"init": f"starts from the moving average of step 12 in {named}"}
    assert first.experiment().init == named


def without_count(ema):
    return {name: value for name, value in ema.items() if name != "n_averaged"}


def test_at_step_0_it_is_measured_as_the_source(runs, tmp_path):
    started(runs / "mean_flow", tmp_path)
    here, there = (
        evaluate(load_trainer(path, CPU, {"seed": 7, "init": None}))
        for path in (checkpoint(tmp_path, 0).path, runs / "mean_flow")
    )
    key = f"eval/{TOY.evaluation.distance.key}"
    assert here[key] == there[key]


def test_flow_matching_starts_as_mean_flow_with_its_velocity(runs, tmp_path):
    """A run of flow matching from it, or one that is told so, keeps its weights to the bit."""
    notes = started(runs / "flow", tmp_path / "run")
    assert notes.keys() == {"init", "init.r"} and "v(z, t) at every r" in notes["init.r"]
    net, flow = load(checkpoint(tmp_path / "run", 0).path, CPU).ema, load(runs / "flow", CPU).ema
    z, (r, t) = torch.randn(4, 2, generator=generator("z")), torch.rand(2, 4).sort(0).values
    torch.testing.assert_close(net(z, r, t), flow(z, t, t), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(flow(z, r, t), flow(z, t, t), rtol=1e-3)
    assert started(runs / "flow", tmp_path / "again", FLOW).keys() == {"init"}
    kept = started(runs / "flow", tmp_path / "kept", {"init_independent_of_r": False})
    assert kept["init.r"].endswith("; its embedding of t - r is kept")
    for name in ("again", "kept"):
        ema = load(checkpoint(tmp_path / name, 0).path, CPU).ema
        assert same(without_count(ema.state_dict()), without_count(flow.state_dict()))


@pytest.mark.parametrize("died", [2, 10])
def test_it_goes_on_to_the_bit_without_its_source(died, runs, tmp_path):
    """Also before its first regular checkpoint, at step 4."""
    source = shutil.copytree(runs / "mean_flow", tmp_path / "source")
    started(source, tmp_path / "twin")
    with pytest.raises(Died):
        started(source, tmp_path / "run", die_at=died)
    experiment = checkpoint(tmp_path / "run", 0).experiment()
    shutil.rmtree(source)
    train(experiment, Session(directory=tmp_path / "run"))
    ends = [checkpoint(tmp_path / name, 12).load() for name in ("run", "twin")]
    assert same(*ends)
    assert not same(ends[0]["net"], checkpoint(tmp_path / "twin", 0).load()["net"])


def test_what_cannot_be_a_start_is_refused_in_one_line(runs, tmp_path):
    wider = TOY.override({"init": str(runs / "mean_flow"), "model.hidden": [8, 9]})
    with pytest.raises(
        ValueError, match=r"same network; .*model.hidden: \(8,\) there, \(8, 9\) here$"
    ):
        resolved(wider)
    unet = Experiment(init=runs / "mean_flow")
    with pytest.raises(ValueError, match=r"model: MLPConfig\(.* there, UNetConfig\(.* here$"):
        resolved(unet)
    lines = {
        runs / "none": f"no checkpoint in {runs / 'none'}",
        runs / "ddpm": "predicts noise, and this run predicts a velocity",
        tmp_path / "no.safetensors": "is no readable .safetensors file",
        Path(__file__): "is no readable checkpoint",
    }
    for source, line in lines.items():
        with pytest.raises(ValueError, match=line.replace("(", r"\(")) as caught:
            resolved(TOY.override({"init": str(source)}))
        assert "\n" not in str(caught.value)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="init must be a run, a checkpoint, an exported file"):
        resolved(replace(TOY, init=tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"init_average chooses among .*; got 'net'"):
        resolved(replace(TOY, init=runs / "mean_flow", init_average="net"))
    for setting in ({"init_average": "net"}, {"init_independent_of_r": False}):
        with pytest.raises(ValueError, match="init_independent_of_r = false need init; got "):
            TOY.override(setting)


def test_another_shape_and_a_damaged_checkpoint_are_refused(runs, tmp_path):
    wider = replace(TOY, init=runs / "mean_flow", data=Mixture(dim=4))
    with pytest.raises(ValueError, match=r"samples of the same shape; .*\(2,\).*\(4,\)$"):
        resolved(wider)
    source = shutil.copytree(runs / "mean_flow", tmp_path / "source")
    os.truncate(checkpoint(source, 12).path / "state.pt", 1000)
    with pytest.raises(ValueError, match=r"is damaged: state\.pt: 1000 of "):
        resolved(TOY.override({"init": str(checkpoint(source, 12).path)}))
