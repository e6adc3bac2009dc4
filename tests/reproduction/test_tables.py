"""Tables: errors, paired verdicts and ratios against their formulas."""

import math

import pytest
import torch
from small import RESULT

from vamf.reproduction.results import Result, load_all
from vamf.reproduction.tables import document, over_seeds, ratio, table, verdict


def paired_t(a, b):
    difference = (a - b).double()
    return (difference.mean() / difference.std() * len(difference) ** 0.5).item()


def test_verdict_is_the_paired_t_test_at_95_percent():
    """With 2 degrees of freedom the critical value is 4.3027: just beyond it and just within."""
    base = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    spread = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)  # of deviation 1
    for t, found in ((4.31, "worse"), (4.29, "indistinguishable"), (-4.31, "better")):
        values = base + 0.01 * (spread + t / 3**0.5)
        assert paired_t(values, base) == pytest.approx(t)
        assert verdict(values, base) == found
    assert verdict(base, base) == "indistinguishable"
    assert verdict(base * math.nan, base) == "lost"


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
        "3 seeds (2 degree(s) of freedom) at 95 %, against beta = 0: with so few seeds only",
        "Of 4 tests\nabout 0 would differ by chance",
        "Floor (real against real points): SW1 0.0400 ± 0.0020, SW2 0.0600 ± 0.0030",
        "100 steps, trained gap at most 0.5; a machine, torch 2.11, 12 s for 9 members, beside 1",
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
