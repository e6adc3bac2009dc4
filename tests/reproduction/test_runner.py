"""Reproductions: measured on common draws, paused and continued bit for bit."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from helpers.small import SMALL

from vamf.benchmarks import ensemble_step
from vamf.metrics.wasserstein import sliced_wasserstein
from vamf.reproduction import measure, runner
from vamf.reproduction.ensemble import draw_blocks
from vamf.reproduction.ensemble import ensemble as ensembles
from vamf.reproduction.ensemble.ensemble import Ensemble
from vamf.reproduction.protocol import Program
from vamf.reproduction.results import load_all
from vamf.reproduction.runner import Computing, Work, run
from vamf.rng import generator

CPU = Computing(device="cpu", together=1)
ONE = replace(SMALL, sets=("two_moons",))


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    for module in (draw_blocks, ensembles, runner):
        monkeypatch.setattr(module, "BLOCK", 3)


def finished(protocol, folder, computing=CPU):
    folder.mkdir(exist_ok=True)
    lines = []
    results = run(protocol, folder, computing, lines.append)
    return {result.program.key: result for result in results}, lines


def figures(result):
    return json.dumps({k: v for k, v in asdict(result).items() if k not in ("seconds", "together")})


def test_paused_is_never_interrupted_bit_for_bit(tmp_path):
    """A moment is enough for one piece of at most two blocks, then the state is saved."""
    whole, _ = finished(ONE, tmp_path / "whole")
    moment, pauses = replace(CPU, minutes=1e-9), 0
    while not (found := finished(ONE, tmp_path / "paused", moment))[0]:
        assert "steps left" in found[1][0] and (tmp_path / "paused" / "two_moons.pt").exists()
        pauses += 1
    assert pauses >= 2
    assert figures(found[0]["two_moons"]) == figures(whole["two_moons"])
    assert [path.name for path in (tmp_path / "paused").iterdir()] == ["two_moons.json"]


def test_sets_trained_together_are_those_trained_in_turn(tmp_path):
    turn, _ = finished(SMALL, tmp_path / "turn")
    together, _ = finished(SMALL, tmp_path / "together", replace(CPU, together=2))
    assert {n: figures(r) for n, r in turn.items()} == {n: figures(r) for n, r in together.items()}
    assert finished(SMALL, tmp_path / "turn")[0] == {}  # nothing is left


def test_sets_at_different_steps_are_brought_together(tmp_path):
    """One of two sets is further on, as after a run with other ``--sets``."""
    ahead = Work(SMALL, Program("two_moons"), tmp_path, torch.device("cpu"))
    assert not runner.train([ahead], 0.0, lambda _: None)
    assert ahead.step == 4  # a trace is due before two blocks are over
    found, _ = finished(SMALL, tmp_path, replace(CPU, together=2))
    whole, _ = finished(SMALL, tmp_path / "whole")
    assert {n: figures(r) for n, r in found.items()} == {n: figures(r) for n, r in whole.items()}


def test_traces_are_averaged_over_the_second_half(tmp_path):
    result = finished(ONE, tmp_path)[0]["two_moons"]
    traces = torch.tensor(result.traces, dtype=torch.float64)
    assert result.trace_steps == [4, 8, 12] and traces.shape == (3, 2, 2)
    torch.testing.assert_close(result.grid("trace"), traces[1:].mean(0))


def test_members_are_measured_on_common_points():
    """A member's figure is that of its own samples of the shared noise, by the metric itself."""
    own = Ensemble(ONE.experiment("two_moons"), ONE.betas, ONE.seeds)
    own.advance(2)
    found, floor = measure.measure(own, ONE, "two_moons")
    assert found.shape == (2, 2, 2, 2) and floor.shape == (2, 2)
    real, noise, marginal = measure.draw(ONE, "two_moons", 1, own.device)
    directions = {"directions": 8, "generator": generator(2020, "directions", 1)}
    expected = sliced_wasserstein(own.samples(noise)[0, 1], real, **directions)
    assert tuple(found[1, :, 0, 1].tolist()) == expected
    directions["generator"] = generator(2020, "directions", 1)
    assert tuple(floor[1].tolist()) == sliced_wasserstein(marginal, real, **directions)
    assert not torch.equal(real, marginal) and found.isfinite().all()


@pytest.mark.slow
def test_objectives_are_measured_on_common_draws(tmp_path):
    """MeanFlow, in a program of its own, is beta = 0 of all betas, up to float32's rounding."""
    objectives = replace(ONE, objectives=("MeanFlow", "alpha-Flow"))
    found, lines = finished(objectives, tmp_path / "objectives")
    (betas,) = finished(ONE, tmp_path / "betas")[0].values()
    assert [*load_all(tmp_path / "objectives")] == ["two_moons.meanflow", "two_moons.alpha_flow"]
    assert lines == [f"two_moons, {name}: trained" for name in objectives.objectives]
    mean_flow, alpha_flow = found.values()
    for name in ("sw1", "sw2", "trace"):
        single = mean_flow.grid(name)
        assert single.shape == (2, 1) and not torch.equal(single, alpha_flow.grid(name))
        torch.testing.assert_close(single[:, 0], betas.grid(name)[:, 0], rtol=1e-3, atol=0)
    assert mean_flow.floor == alpha_flow.floor == betas.floor
    left = runner.unfinished(replace(objectives, objectives=("all",)), tmp_path / "objectives")
    assert left[0] == Program("two_moons", "beta 0.5, moving average") and len(left) == 8


def test_a_lost_member_is_named_and_has_no_figures(tmp_path):
    lost = Work(ONE, Program("two_moons"), tmp_path, torch.device("cpu"))
    with torch.no_grad():
        lost.ensemble.net["head.bias"][1, 1] = torch.nan
    assert runner.train([lost], float("inf"), lambda _: None)
    result = lost.finish(together=1)
    assert result.lost == [[0, 1, 1]]
    for name in ("sw1", "sw2", "trace"):
        assert result.grid(name).isnan().tolist() == [[False, False], [False, True]]
    assert all(error > 0 for error in result.repetition_error)


@pytest.mark.parametrize("damage", [b"", b"no tensors"])
def test_a_damaged_state_is_reported(tmp_path, damage):
    (tmp_path / "two_moons.pt").write_bytes(damage)
    with pytest.raises(ValueError, match=r"two_moons.pt must be a saved ensemble; "):
        Work(ONE, Program("two_moons"), tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"together": 0}, "together must be at least 1 and minutes positive; got 0 and None"),
        ({"minutes": 0.0}, "together must be at least 1 and minutes positive; got 1 and 0.0"),
    ],
)
def test_where_nothing_can_be_computed(changes, line):
    with pytest.raises(ValueError) as raised:
        replace(CPU, **changes).prepare()
    assert str(raised.value) == line


def test_speed_is_that_of_all_members():
    found = ensemble_step.Speed(members=6, single=0.5, ensemble=0.25)
    assert found.ratio == 12 and "12.0 times faster" in str(found)
    measured = ensemble_step.speed(
        ONE.experiment("two_moons"), (0.0, 1.0), (0,), torch.device("cpu"), 1
    )
    assert measured.members == 2 and measured.ratio > 0
