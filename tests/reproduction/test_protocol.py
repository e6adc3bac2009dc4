"""What is reproduced: the paper's protocol, checked before anything starts."""

import shlex
from dataclasses import replace

import pytest
import tyro
from helpers.small import SMALL

from vamf.metrics.distances import SlicedWasserstein
from vamf.reproduction import paper
from vamf.reproduction.ensemble.requirements import check
from vamf.reproduction.objectives import OBJECTIVES
from vamf.reproduction.protocol import DIMENSIONS, PROGRAMS, SETS, Protocol, claim


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sets": ("two_moon",)}, "unknown set 'two_moon'; did you mean 'two_moons'?"),
        ({"betas": (0.0, 1.5)}, "beta must lie in [0, 1]; got 1.5"),
        ({"betas": (0.5, 1.0)}, "betas must contain 0, to compare with; got [0.5, 1.0]"),
        ({"seeds": (42,)}, "seeds must be at least 2, for standard errors; got [42]"),
        ({"seeds": (1, 1)}, "seeds must be given, each once; got [1, 1]"),
        ({"sets": ()}, "sets must be given, each once; got []"),
        (
            {"objectives": ("MeanFlow", "semi-group")},
            "unknown objective 'semi-group'; did you mean 'semigroup'?",
        ),
        (
            {"objectives": ("semigroup", "alpha-Flow")},
            "objectives must contain MeanFlow, to compare with; got semigroup, alpha-Flow",
        ),
        (
            {"objectives": ("MeanFlow", "MeanFlow")},
            "objectives must be given each once; got MeanFlow, MeanFlow",
        ),
        (
            {"objectives": ("all",), "betas": (0.0, 1.0)},
            "objectives have their own beta: betas must not be given; got [0.0, 1.0]",
        ),
        ({"steps": 1}, "steps must be at least 2 and trace_every at least 1; got 1 and 2000"),
    ],
)
def test_what_cannot_be_reproduced(changes, line):
    with pytest.raises(ValueError) as raised:
        replace(Protocol(), **changes).check()
    assert str(raised.value) == line


def test_the_default_is_the_papers_sweep():
    Protocol().check()
    assert len(SETS) == 18 and Protocol().betas[3] == 0.3 and len(Protocol().betas) == 11
    assert Protocol().distance == SlicedWasserstein(samples=4096, directions=500)


@pytest.mark.parametrize(("setting", "gap"), [("faithful", 0.5), ("sound", 1.0)])
def test_settings_differ_in_the_trained_gap_alone(setting, gap):
    experiment = replace(Protocol(), setting=setting).experiment("pinwheel")
    assert experiment.times.max_gap == gap
    assert experiment.override({"times.max_gap": 0.5}) == Protocol().experiment("pinwheel")


def test_short_runs_have_a_trace_in_their_second_half():
    assert Protocol().interval == 2000
    assert replace(SMALL, steps=7, trace_every=2000).interval == 3


OBJECTIVES_OF_TWO = replace(
    Protocol(), sets=("two_moons", "checkerboard"), objectives=("MeanFlow", "beta 1, own velocity")
)


@pytest.mark.parametrize(
    "protocol",
    [Protocol(), SMALL, replace(Protocol(), setting="sound"), OBJECTIVES_OF_TWO],
)
def test_the_command_says_what_was_run(protocol):
    words = shlex.split(protocol.command)
    assert words[:3] == ["python", "-m", "jobs.reproduce"]
    assert tyro.cli(Protocol, args=words[3:]) == protocol


def test_objectives_are_programs_of_their_own():
    """Each with the settings that its name has, at its beta, and the protocol's otherwise."""
    OBJECTIVES_OF_TWO.check()
    keys = [program.key for program in OBJECTIVES_OF_TWO.programs]
    ends = ("meanflow", "beta_1_own_velocity")
    assert keys == [f"{name}.{end}" for name in ("two_moons", "checkerboard") for end in ends]
    own = OBJECTIVES_OF_TWO.programs[1]
    assert OBJECTIVES_OF_TWO.betas_of(own) == (1.0,)
    expected = Protocol().experiment("two_moons").override({"beta.value": 1.0, "proxy": "online"})
    assert OBJECTIVES_OF_TWO.experiment(*own) == expected
    everything = replace(OBJECTIVES_OF_TWO, objectives=("all",))
    assert len({program.key for program in everything.programs}) == 2 * len(OBJECTIVES)
    assert len({program.key for program in PROGRAMS}) == len(SETS) * (1 + len(OBJECTIVES))
    assert [program.key for program in SMALL.programs] == list(SMALL.sets)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_can_be_trained_as_one_program(objective):
    own = OBJECTIVES_OF_TWO.experiment("two_moons", objective)
    check(own, (own.beta.value,), (42, 0, 1))
    assert own.loss.weight.p == 0


def test_a_folder_belongs_to_one_protocol_but_any_sets(tmp_path):
    folder = tmp_path / "a"
    claim(folder, SMALL)
    claim(folder, replace(SMALL, sets=("pinwheel",)))
    with pytest.raises(ValueError, match="holds another reproduction: steps 12 there, 13 here"):
        claim(folder, replace(SMALL, steps=13))
    objectives = replace(SMALL, objectives=("all",))
    line = r"another reproduction: betas \[0.0, 1.0\] there, those of objectives here"
    with pytest.raises(ValueError, match=line):
        claim(folder, objectives)
    claim(tmp_path / "c", objectives)
    claim(tmp_path / "c", replace(SMALL, objectives=("MeanFlow", "semigroup")))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "something").touch()
    with pytest.raises(ValueError, match="holds something else; choose another name"):
        claim(tmp_path / "b", SMALL)


def test_the_papers_figures_are_found_by_set_and_beta():
    one, two = paper.sliced_wasserstein("two_moons", 1.0)
    assert (str(one), str(two)) == ("0.072 ± 0.019", "0.093 ± 0.025")
    assert paper.sliced_wasserstein("two_moons", 0.5) == (None, None)
    assert paper.sliced_wasserstein("pinwheel", 0.0) == (None, None)
    assert paper.sliced_wasserstein("dgmm_32_redrawn", 0.3) == (paper.PaperValue(0.038), None)
    assert str(paper.sliced_wasserstein("dgmm_64_redrawn", 0.4)[0]) == "0.025 ± 0.000"
    assert paper.sliced_wasserstein("dgmm_64", 0.4) == (None, None)
    assert paper.sliced_wasserstein("dgmm_64_redrawn", 0.45) == (None, None)
    assert set(paper.DGMM) == set(DIMENSIONS) and all(len(r) == 11 for r in paper.DGMM.values())
