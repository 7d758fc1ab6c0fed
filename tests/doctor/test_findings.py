"""Findings as text, and checks that raise."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.doctor.findings import WIDTH, ok, problem, run_check, table_lines


def test_run_check__an_error_is_a_problem_and_earlier_findings_stay():
    def check(subject):
        yield ok("so far so good")
        raise ZeroDivisionError(subject)

    first, second = run_check("sums", check, "by nought")
    assert (first.check, first.status) == ("sums", "ok")
    assert (second.check, second.status, second.message) == ("sums", "problem", "ZeroDivisionError: by nought")


@settings(max_examples=25)
@given(st.text(max_size=300), st.text(max_size=100))
def test_table_lines__whatever_is_said_fits_and_is_printable(message, remedy):
    lines = table_lines(problem(message, remedy))
    assert all(len(line) <= WIDTH and line.isprintable() for line in lines)
    assert lines[0].startswith("problem")
