"""Tables of objectives: verdicts against MeanFlow by seed, what was lost, what is not finished."""

import math
from dataclasses import replace

import pytest
from helpers.small import RESULT

from vamf.reproduction.objective_tables import document, table, verdicts
from vamf.reproduction.results import Result, load_all


def result(objective, sw1, **changes):
    """The result of an objective with this SW1 of each seed; its SW2 is twice that."""
    grid, twice = [[value] for value in sw1], [[2 * value] for value in sw1]
    own = {"trace": [[4.0], [5.0], [6.0]], "lost": [], "betas": [0.0], "together": 1}
    return replace(RESULT, objective=objective, sw1=grid, sw2=twice, **{**own, **changes})


BASE = result("MeanFlow", [0.3, 0.4, 0.5])


def with_t(t):
    """SW1 whose differences from BASE have this t statistic over 3 seeds: deviation 1, mean t."""
    return [0.3 + 0.01 * (t / 3**0.5 - 1), 0.4 + 0.01 * t / 3**0.5, 0.5 + 0.01 * (t / 3**0.5 + 1)]


@pytest.mark.parametrize(
    ("t", "verdict"), [(4.31, "worse"), (4.29, "indistinguishable"), (-4.31, "better")]
)
def test_the_verdict_on_one_objective_is_the_paired_t_test_at_95_percent(t, verdict):
    """With 2 degrees of freedom the critical value is 4.3027."""
    found = verdicts([result("semigroup", with_t(t)), BASE], "sw1")  # in any order
    assert found == {"semigroup": verdict, "MeanFlow": "-"}


def test_nothing_is_compared_before_meanflow_is_finished():
    assert verdicts([result("semigroup", with_t(5))], "sw1") == {"semigroup": "-"}
    assert verdicts([BASE], "sw1") == {"MeanFlow": "-"}


def test_an_objective_that_diverged_is_one_line_and_lost():
    lost = result("alpha-Flow", [0.3, math.nan, math.nan], lost=[[0, 0, 17], [1, 0, 20]])
    text = document([BASE, lost, result("semigroup", with_t(9))])
    assert "\nLost: alpha-Flow, seed 0 from step 17 on, seed 1 from step 20 on.\n" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["MeanFlow", "alpha-Flow", "semigroup"]
    assert rows[0][1:] == ["0.400 ± 0.058", "-", "0.80 ± 0.12", "-", "5.00 ± 0.58", "12"]
    assert rows[1][1:5] == ["lost"] * 4 and rows[2][2] == "worse"


def test_the_document_says_how_to_read_it():
    other = result("semigroup", with_t(9), set="checkerboard")
    text = document(
        [BASE, result("semigroup", with_t(9)), replace(BASE, set="checkerboard"), other]
    )
    assert text.count("\n## ") == 2 and text.startswith("# Objectives on points\n")
    for part in (
        "`python -m jobs.reproduce`",
        "larger: with so few seeds only large effects show. 4 of 4\ntests differ",
        "100 steps, trained gap at most 0.5; a machine, torch 2.11; 3 members for each objective.",
    ):
        assert part in text
    assert len({len(line) for line in table([BASE]).splitlines()}) == 1


def test_results_of_objectives_survive_their_files(tmp_path):
    for own in (BASE, result("flow matching", [0.1, 0.2, 0.3])):
        own.save(tmp_path)
    found = load_all(tmp_path)
    assert [*found] == ["two_moons.meanflow", "two_moons.flow_matching"]
    assert found["two_moons.meanflow"] == BASE and isinstance(BASE, Result)
