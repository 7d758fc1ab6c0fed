"""Slices as text: the significant ones, by the lower end of the interval, whatever users name."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.data.report import ClassReport, FailureReport, SliceReport
from lightning_failures.report.markdown import report_sections
from lightning_failures.report.slices import significant_slices, slice_lines, slices_markdown

CYAN = SliceReport("tint", "cyan", "four", 102, 71, 0.7, (0.6, 0.78), 0.05, 0.65, (0.54, 0.73), 1e-9, True)
SMALL = replace(CYAN, value="gray", examples=3, failures=3, error_rate=1.0, gap=0.9, gap_interval=(0.2, 0.95))
NOISE = replace(CYAN, value="noise", significant=False)
ANY = st.text(st.characters(), max_size=300)


def a_report(*of_class, overall=()):
    return FailureReport(200, 0.6, (ClassReport("one", 1), ClassReport("four", 200, slices=of_class)), slices=overall)


def test_significant_slices__by_the_lower_end_with_their_paths():
    report = a_report(SMALL, CYAN, NOISE, overall=(replace(CYAN, class_name=None, gap_interval=(0.3, 0.5)), NOISE))
    assert [path for path, _ in significant_slices(report)] == ["classes/1/slices/1", "slices/0", "classes/1/slices/0"]
    assert len(significant_slices(report, 1)) == 1
    common = replace(CYAN, class_name=None, adjusted_gap=0.02, adjusted_gap_interval=(0.01, 0.14))
    assert [path for path, _ in significant_slices(a_report(SMALL, overall=(common,)))] == [
        "classes/1/slices/0",
        "slices/0",
    ]
    assert significant_slices(a_report(NOISE)) == []


def test_slice_lines__and_how_many_are_left_out():
    report = a_report(CYAN, SMALL, overall=(replace(CYAN, class_name=None, gap_interval=(0.3, 0.5)),))
    first, second, more = slice_lines(report, limit=2)
    assert first == "four: tint = cyan: 70.0 % (60.0 to 78.0 %) of 102 examples fail, 5.0 % of the others"
    assert second.startswith("all classes: tint = cyan: ")
    adjusted = replace(CYAN, class_name=None, adjusted_gap=0.02, adjusted_gap_interval=(-0.1, 0.14))
    assert slice_lines(a_report(overall=(adjusted,)))[0].endswith("5.0 % of the others (within classes +2.0 points)")
    assert more == "1 more in report.json"
    assert slice_lines(a_report(NOISE)) == []


def test_slices_markdown__a_row_a_slice():
    *_, row = slices_markdown(a_report(CYAN, NOISE)).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "four",
        "tint = cyan",
        "102",
        "70.0 %",
        "60.0 to 78.0 %",
        "5.0 %",
        "+65.0 points",
        "54.0 to 73.0 points",
        "-",
        "-",
    ]
    assert slices_markdown(a_report(CYAN, SMALL), limit=1).endswith("1 more are in report.json.")
    assert "slices" not in report_sections(a_report(NOISE))
    assert list(report_sections(a_report(CYAN))) == ["slices"]


@given(ANY, ANY)
def test_slices__hostile_names_keep_lines_and_tables_whole(attribute, name):
    report = a_report(replace(CYAN, attribute=attribute, value=name, class_name=name))
    (line,) = slice_lines(report)
    assert line.isprintable()
    assert slices_markdown(report).count("\n") == 4
    assert slices_markdown(report).splitlines()[-1].count("|") == 11
