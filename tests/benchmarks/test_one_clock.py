"""Every objective gets the same seconds, and a search of them is a module."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny import TINY

from jobs import clock as job
from jobs import named
from vamf.benchmarks import one_clock
from vamf.benchmarks.one_clock import EVALUATIONS, Clock, Pace, measure
from vamf.cluster.search import space as spaces
from vamf.cluster.search.search_config import Sweep
from vamf.flow.objectives.meanflow import MeanFlowLoss
from vamf.flow.schedules import BetaSchedule
from vamf.presets import PRESETS
from vamf.reproduction.objectives import METHODS

CPU = torch.device("cpu")


def test_a_training_has_the_steps_that_its_seconds_hold() -> None:
    clock = Clock(
        TINY, 60.0, {"MeanFlow": Pace(9, 10, 0.1, None), "semigroup": Pace(0, 0, 0.7, 2.5)}, {}
    )
    assert clock.settings("MeanFlow")["steps"] == 500
    found = clock.settings("semigroup")
    assert found["steps"] == 85 and found["evaluation.every"] == 11 and found["log_every"] == 1
    assert found["loss.kind"] == "SemigroupLoss" and found["beta.value"] == 0.0
    assert clock.format().splitlines()[1:] == [
        "MeanFlow                          9.0 s   10.0 s   100.00 ms                   500",
        "semigroup                         0.0 s    0.0 s   700.00 ms     2.5 GiB        85",
    ]


def test_first_steps_count_apart_and_changing_steps_by_their_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that only steps move: 1 s, or 3 s in the second half of what moves.

    A training's first step takes 7 s, and on a machine that has compiled nothing 27 s.
    """
    now, total = [0.0], 100

    class Counted:
        def __init__(self, experiment, device):
            self.experiment, self.step = experiment, 0
            self.workers = type("", (), {"device": device})

        def train_step(self) -> None:
            late = self.experiment.loss.moves and self.step > total / 2
            first = 27 if now[0] == 0 else 7
            now[0] += first if self.step == 0 else 3 if late else 1
            self.step += 1

    monkeypatch.setattr(one_clock, "trainer_of", Counted)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for kind, step in (("MeanFlowLoss", 1), ("AlphaFlowLoss", 2)):
        now[0] = 0.0
        experiment = PRESETS["digits"].override({"loss.kind": kind, "steps": total})
        pace = one_clock._pace(experiment, CPU)
        assert pace.step == step and pace.compiling == 20
        assert pace.first == max(8 - 2 * step, 0)  # two steps of warm-up


def test_the_written_space_is_searched_as_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paces = itertools.count(1)
    monkeypatch.setattr(one_clock, "_pace", lambda *_: Pace(2.0, 0.5, 0.01 * next(paces), None))
    file = tmp_path / "clock.py"
    job.main(["digits", "--seconds", "9", "--out", str(file), "--device", "cpu"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("search")]
    assert line.endswith(f"tune {file} --trials {len(METHODS)} --seeds 3")
    space, digits = named.space(str(file)), PRESETS["digits"]
    spaces.check(space, digits)
    assert spaces.objectives(space, digits)[0] == "eval/gradient_variance"
    baseline = spaces.baseline(space, digits)
    assert baseline == dict(space.NAMED["MeanFlow"]) and baseline["steps"] == 850
    for name, settings in space.NAMED.items():
        own = digits.override(settings)
        assert own.evaluation.every * EVALUATIONS >= own.steps > 0
        power = 0 if name == "semigroup" else digits.loss.weight.p
        assert own.loss.weight == replace(digits.loss.weight, p=power), name
    sweep = Sweep.__new__(Sweep)
    object.__setattr__(sweep, "named", space.NAMED)
    assert sweep.label_of(dict(baseline)) == "MeanFlow"


def test_steps_are_timed_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_clock, "REPEATS", 1)
    clock = measure(PRESETS["toy"].override({"batch": 16}), CPU, 1000.0)
    assert [*clock.paces] == [*METHODS] and clock.refused == {}
    assert all(pace.step > 0 and pace.gib is None for pace in clock.paces.values())


def test_a_reference_is_distilled_beside_the_other_objectives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_clock, "_pace", lambda *_: Pace(0.0, 0.0, 0.1, None))
    flow = PRESETS["digits"].override({"proxy": "reference", "reference": "runs/flow"})
    clock = measure(flow, CPU, 100.0)
    assert [*clock.paces] == [*METHODS, "distillation, gamma 1"] and clock.refused == {}
    own = {name: flow.override(clock.settings(name)) for name in clock.paces}
    distilled = own.pop("distillation, gamma 1")
    assert (distilled.proxy, distilled.reference) == ("reference", Path("runs/flow").resolve())
    assert isinstance(distilled.loss, MeanFlowLoss)
    assert distilled.loss.gamma == 1 and distilled.beta == BetaSchedule(value=1.0)
    assert all(other.reference is None for other in own.values())


def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_clock, "_pace", lambda *_: Pace(0.0, 3.0, 1.0, None))
    with pytest.raises(ValueError, match=r"must hold 8 steps; got 10, and MeanFlow takes"):
        measure(TINY, CPU, 10.0)
    taken = tmp_path / "a.py"
    taken.touch()
    for out in (taken, tmp_path / "a.txt"):
        with pytest.raises(SystemExit):
            job.main(["digits", "--out", str(out)])
        assert "--out must be a new file that ends in .py; got" in capsys.readouterr().err


def test_an_objective_that_does_not_fit_is_a_row_that_says_why() -> None:
    guided = PRESETS["digits"].override({"guidance.omega": 2.0, "model.classes": 10})
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(one_clock, "_pace", lambda *_: Pace(0.0, 0.0, 0.1, None))
        clock = measure(guided, CPU, 100.0)
    assert "needs loss.boundary null" in clock.refused["terminal velocity"]
    assert "terminal velocity" not in clock.paces and "MeanFlow" in clock.paces
    assert "needs loss.boundary null" in clock.format()
