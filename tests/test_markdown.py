"""Tables have aligned columns and one cell a column."""

import pytest

from vamf import markdown


def test_columns_are_as_wide_as_their_widest_cell():
    text = markdown.table(["", "trial"], [["*", "β=0.500"], ["", "1"]])
    assert text.split("\n") == [
        "|   | trial   |",
        "|---|---------|",
        "| * | β=0.500 |",
        "|   | 1       |",
    ]


def test_a_table_may_have_no_rows():
    assert markdown.table(["a"], []) == "| a |\n|---|"


def test_rows_have_as_many_cells_as_the_header():
    with pytest.raises(ValueError, match="zip"):
        markdown.table(["a", "b"], [["1"]])
