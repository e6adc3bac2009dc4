"""Tables: errors, paired verdicts and ratios against their formulas."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.small import RESULT

from vamf.reproduction.results import Result, load_all
from vamf.reproduction.tables import document, over_seeds, ratio, table, verdicts


def paired_t(a, b):
    difference = (a - b).double()
    return (difference.mean() / difference.std() * len(difference) ** 0.5).item()


def result(*columns):
    """A set with these figures as SW1, the first of beta = 0."""
    grid = torch.stack(columns, 1).tolist()
    return replace(RESULT, betas=[0.0, 0.5, 1.0][: len(columns)], sw1=grid)


def test_the_verdict_on_one_beta_is_the_paired_t_test_at_95_percent():
    """With 2 degrees of freedom the critical value is 4.3027: just beyond it and just within."""
    base = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    spread = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)  # of deviation 1
    for t, found in ((4.31, "worse"), (4.29, "indistinguishable"), (-4.31, "better")):
        values = base + 0.01 * (spread + t / 3**0.5)
        assert paired_t(values, base) == pytest.approx(t)
        assert verdicts(result(base, values), "sw1") == ["-", found]
    assert verdicts(result(base, base), "sw1") == ["-", "indistinguishable"]
    assert verdicts(result(base, base * math.nan, base), "sw1") == [
        "-",
        "lost",
        "indistinguishable",
    ]


def test_of_sets_without_an_effect_one_in_twenty_has_a_verdict():
    """Ten betas and three seeds, as in the paper: differences by chance are rarely reported."""
    draw, wrong = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        grid = 1 + 0.1 * torch.randn(3, 11, generator=draw, dtype=torch.float64)
        some = replace(RESULT, betas=[k / 10 for k in range(11)], sw1=grid.tolist())
        wrong += bool({"better", "worse"} & set(verdicts(some, "sw1")))
    assert wrong <= 0.05 * 300 + 3 * (0.05 * 0.95 * 300) ** 0.5


def test_error_over_seeds():
    value, error = over_seeds(torch.tensor([1.0, 2.0, 6.0]))
    assert value == pytest.approx(3) and error == pytest.approx(7**0.5 / 3**0.5)


def test_ratio_is_paired_within_seeds():
    assert ratio(RESULT, 1) == (2.0, 0.0) and ratio(RESULT, 2) == (4.0, 0.0)


def test_rows_of_a_set():
    header, rule, *rows = table(RESULT).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({len(line) for line in (header, rule, *rows)}) == 1
    assert [row[0] for row in cells] == ["0", "0.5", "1"]
    assert cells[0][1:4] == ["0.400 ± 0.058", "0.093 ± 0.028", "-"]
    assert [row[3] for row in cells] == ["-", "better", "indistinguishable"]
    assert [row[6] for row in cells] == ["-", "indistinguishable", "lost"]
    assert cells[2][4] == "lost" and cells[2][5] == "0.093 ± 0.025"
    assert [row[8] for row in cells] == ["1", "2", "4"]


def test_document_says_how_to_read_it():
    text = document({"two_moons": RESULT})
    for part in (
        "that is larger: with so few seeds only large effects show. 1 of 4 tests\ndiffer",
        "5% are expected to by chance",
        "Floor (real against real points): SW1 0.0400 ± 0.0020, SW2 0.0600 ± 0.0030",
        "100 steps, trained gap at most 0.5; a machine, torch 2.11, 12 s for 9 members, trained "
        "together with 1 other sets",
        "Lost: seed 42, beta 1, from step 17 on.",
        "`python -m jobs.reproduce`",
    ):
        assert part in text


def test_results_survive_their_file(tmp_path):
    assert load_all(tmp_path) == {}
    RESULT.save(tmp_path)
    (there,) = load_all(tmp_path).values()
    assert math.isnan(there.sw2[0][2])
    there.sw2[0][2] = RESULT.sw2[0][2]  # NaN equals itself by identity alone
    assert there == RESULT and isinstance(there, Result)
