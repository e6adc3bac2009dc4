"""Couplings of flows with a closed form; what ``jobs.couple`` writes, continues and refuses."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.couplings import POINTS, flow
from helpers.tiny import TINY

from jobs import couple
from vamf.data.couplings import Couplings, CouplingsIndex
from vamf.data.toys import Toy
from vamf.flow.oracle import MixtureVelocity
from vamf.inference import coupling
from vamf.inference.coupling import Coupling, integrated
from vamf.training.loop import Session, train

CENTRE = torch.tensor([[3.0, -1.0]], dtype=torch.float64)


def ends(velocity, steps, count=32):
    """x and e of pairs, (count, 2) each, in float64."""
    pairs, _ = integrated(flow(velocity), range(count), Coupling(count=count, steps=steps))
    return pairs.double().unbind(1)


@pytest.mark.parametrize("steps", [1, 4])
def test_on_straight_paths_every_number_of_steps_is_exact(steps):
    """One data point c has v = (z - c) / t, hence z_t = (1 - t) c + t e and x = c."""
    x, e = ends(lambda z, t: (z - CENTRE) / t[:, None], steps)
    torch.testing.assert_close(x, CENTRE.expand_as(x), rtol=0, atol=1e-12)
    assert e.std() > 0.5


def test_pairs_converge_to_the_exact_map_at_second_order():
    """Of data N(0, s^2) the ODE has z_t = sqrt((1 - t)^2 s^2 + t^2) e, hence x = s e."""
    gaussian = MixtureVelocity(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    errors = []
    for steps in (16, 32, 64):
        x, e = ends(gaussian, steps)
        errors.append((x - 0.5 * e).norm() / e.norm())
    assert errors[0] < 1e-2
    assert [(a / b).item() for a, b in pairwise(errors)] == pytest.approx([4, 4], rel=0.1)


def test_a_pair_depends_on_seed_and_number_alone():
    gaussian = MixtureVelocity(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    plan = Coupling(count=8, steps=2)
    whole, _ = integrated(flow(gaussian), range(8), plan)
    some, _ = integrated(flow(gaussian), range(3, 6), Coupling(count=99, steps=2))
    assert torch.equal(whole[3:6], some)
    assert len(whole.flatten().unique()) == whole.numel()
    other, _ = integrated(flow(gaussian), range(8), Coupling(count=8, steps=2, seed=1))
    assert not torch.equal(whole[:, 1], other[:, 1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of flow matching, of no training to speak of."""
    folder = tmp_path_factory.mktemp("flow")
    settings = {"times.kind": "UniformTimes", "times.prob_equal": 1.0, "steps": 1}
    train(POINTS.override(settings), Session(directory=folder))
    return folder


def job(run, out, *more):
    few = ["--count", "10", "--steps", "2", "--shard", "4"]
    couple.main([str(run), "--out", str(out), *few, *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_coupled(run, tmp_path, capsys):
    out = tmp_path / "pairs"
    job(run, out)
    *shards, last = capsys.readouterr().out.splitlines()
    assert shards[2] == "shard 3 of 3, 2 pairs: written"
    assert last == f"train on them: --set data.kind=Couplings data.root={out}"
    index = CouplingsIndex.load(out)
    assert (index.count, index.shape, index.classes, index.step) == (10, (2,), 0, 1)
    assert index.run.startswith(str(run)) and (index.steps, index.seed) == (2, 0)
    assert Couplings(root=out).original == index.source == Toy()
    whole = contents(out)
    job(run, out)
    assert "shard 1 of 3, 4 pairs: is there" in capsys.readouterr().out
    assert contents(out) == whole


def test_a_shard_that_takes_long_says_how_far_it_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coupling, "AT_ONCE", 3)
    monkeypatch.setattr(coupling, "LINE_S", 0.0)
    couple.main([str(run), "--out", str(tmp_path / "a"), "--count", "10", "--shard", "7"])
    assert capsys.readouterr().out.splitlines()[:4] == [
        "shard 1 of 2: 3 of 7 pairs",
        "shard 1 of 2: 6 of 7 pairs",
        "shard 1 of 2, 7 pairs: written",
        "shard 2 of 2, 3 pairs: written",
    ]


def test_an_interrupted_job_leaves_whole_shards_and_goes_on(run, tmp_path, monkeypatch):
    job(run, tmp_path / "whole")
    out, save, calls = tmp_path / "out", np.save, []

    def killed(file, array):  # while it writes the pairs of the second shard
        calls.append(file)
        if len(calls) == 4:
            save(file, array[:1])
            raise KeyboardInterrupt
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        with pytest.raises(SystemExit) as ended:
            job(run, out)
    assert ended.value.code == 130
    with pytest.raises(ValueError, match=r"pairs-00001.npy is missing, of couplings that .*anew"):
        Couplings(root=out).load("train")
    job(run, out)
    assert contents(out) == contents(tmp_path / "whole")


def refused(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        couple.main([str(word) for word in argv])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_what_cannot_be_coupled_is_one_line(run, tmp_path, capsys):
    out = tmp_path / "pairs"
    start = [run, "--out", out, "--count"]
    assert "count must be at least 2; got 0" in refused([*start, "0"], capsys)
    assert "steps must be at least 1; got 0" in refused([*start, "4", "--steps", "0"], capsys)
    assert "no checkpoint in" in refused([tmp_path, *start[1:], "4"], capsys)
    line = refused([*start, "4", "--scale", "2"], capsys)
    assert line.startswith("evaluation.guidance_scale must lie in [1, guidance.max_scale]")
    assert not out.exists()
    line = refused([run, "--out", run, "--count", "4"], capsys)
    assert line == f"a folder for couplings must be empty; got files in {run}"
    job(run, out)
    capsys.readouterr()
    for option, value, line in (
        ("--steps", "3", "steps 3; got 2"),
        ("--seed", "1", "seed 1; got 0"),
        ("--count", "11", "count 11; got 10"),
    ):
        with pytest.raises(SystemExit):
            job(run, out, option, value)
        assert f"{out} must hold couplings with {line}" in capsys.readouterr().err


def test_a_ddpm_and_a_flow_that_diverges_are_refused(tmp_path):
    settings = {"times.kind": "UniformTimes", "times.prob_equal": 1.0, "loss.kind": "DDPM"}
    denoises = {"evaluation.sampler": "ddim", "proxy": "ema", "beta.value": 0}
    other = flow(torch.zeros_like, TINY.override(settings | denoises))
    with pytest.raises(ValueError, match="runs/flow is a DDPM, which predicts noise"):
        next(coupling.couple(Coupling(count=4), other, tmp_path / "a"))
    nowhere = flow(lambda z, t: z / 0)
    with pytest.raises(ValueError, match="samples of runs/flow must be finite"):
        next(coupling.couple(Coupling(count=4), nowhere, tmp_path / "b"))
    assert not (tmp_path / "a").exists()


def test_pairs_of_a_network_with_classes_have_the_labels_that_it_was_told():
    """Its velocity is z - y - kappa, so that x tells label and scale of each pair."""
    guided = TINY.override(
        {"guidance.max_scale": 8, "model.guided": True, "model.classes": 10, "beta.value": 0}
    ).override({"evaluation.guidance_scale": 2.0})
    known = flow(lambda z, t: z, guided)
    known.ema.forward = lambda z, r, t, y, kappa: (y + kappa)[:, None, None, None].expand_as(z)
    pairs, labels = integrated(known, range(40), Coupling(count=40, steps=1))
    x, e = pairs.unbind(1)
    moved = (e - x).flatten(1).mean(1)
    torch.testing.assert_close(moved, labels + 0.5, rtol=0, atol=1e-5)
    assert len(labels.unique()) > 5


def test_the_manifest_is_json_that_names_the_run(run, tmp_path):
    job(run, tmp_path / "pairs")
    about = json.loads((tmp_path / "pairs" / "couplings.json").read_text())
    assert about["source"] == {"kind": "Toy", "name": "eight_gaussians"}
    assert about.keys() >= {"run", "step", "weights", "steps", "seed", "shape", "count"}
