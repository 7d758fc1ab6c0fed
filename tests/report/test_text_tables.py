"""Tables of cells as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.report.text_tables import aligned_table, pipe_table, terminal_width

CELLS = st.text(st.characters(exclude_categories=("C", "M", "Z")), max_size=12)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.integers(2, 9))
def test_aligned_table__no_line_is_wider_than_its_columns(rows, width):
    for line in aligned_table(rows, (width, width), "lr").split("\n"):
        assert terminal_width(line) <= 2 * width + 2


def test_aligned_table__cells_that_are_too_wide_are_cut():
    assert aligned_table([("abcdef", "猫猫猫")], (4, 4), "lr") == "abc…   猫…"
    assert aligned_table([("ab", "猫")], (4, 4), "lr") == "ab      猫"


def test_pipe_table__alignment_and_no_rows():
    assert pipe_table(("a", "b"), [], "rl").splitlines() == ["| a | b |", "| ---: | :--- |"]
