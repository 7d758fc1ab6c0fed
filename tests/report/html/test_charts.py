"""The charts of the page: their data, and that an entry in the registry is all that a chart needs."""

from __future__ import annotations

import json

from lightning_failures.data.report import FailureReport, ModeReport
from lightning_failures.report.html import charts
from lightning_failures.report.html.charts import Chart, ClassChart, diary_rows, scatter_rows
from lightning_failures.report.html.render import render
from tests.report.html.a_run import a_run

RUN = a_run()


def test_charts__an_entry_is_drawn_in_its_section(monkeypatch):
    """Nothing but the entry is needed: neither the page, nor a template, nor the script knows a chart by its name."""
    sizes = Chart("trees", "Sizes of groups", "Few are small.", lambda report, _: [{"n": 3}], lambda rows: {"x": rows})
    none = Chart("trees", "Without data", "", lambda report, history: [], lambda rows: {})
    monkeypatch.setitem(charts.CHARTS, "sizes", sizes)
    monkeypatch.setitem(charts.CHARTS, "none", none)
    one = ClassChart(
        "Examples of the class", "One bar.", lambda entry: [{"n": entry.examples}], lambda rows: {"y": rows}
    )
    monkeypatch.setitem(charts.CLASS_CHARTS, "examples", one)
    page = render(RUN)
    trees = page[page.index('<section id="trees"') : page.index('<section id="features"')]
    cards = page[page.index('<section id="cards"') : page.index('<section id="trees"')]
    assert "Sizes of groups</h3>" in trees
    assert 'data-chart="sizes"' in trees
    assert "Few are small." in trees
    assert "Without data" not in page
    assert cards.count('data-chart="examples"') == cards.count('<details class="card"') == 4
    start = page.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    assert data["charts"]["sizes"] == {"x": [{"n": 3}]}
    assert {len(rows) for rows in data["class_rows"]["examples"].values()} == {1}


def test_scatter_rows__are_the_numbers_of_the_report():
    rows = scatter_rows(RUN.report)
    assert len(rows) == 8  # two of five groups of a kind were not judged
    for row in rows:
        group = RUN.report.groups[row["group"]]
        assert (row["base"], row["heldout"]) == (group.base_error_rate, group.heldout_aler_minus_ber)
        assert row["gain"] == group.aler - group.base_error_rate
        assert (row["pattern"] == "pattern") == group.pattern


def test_diary_rows__follow_the_largest():
    rows = diary_rows(RUN.history, limit=2)
    assert len({row["mode"] for row in rows}) == 2
    assert len(rows) == 2 * len(RUN.history)
    for row in rows:
        assert RUN.history[row["analysis"]].modes[row["place"]].size == row["size"]


def test_scatter__labels_those_that_stand_out_and_stays_within_the_possible():
    rows = scatter_rows(RUN.report)
    labelled = [row for row in rows if "label" in row]
    assert 0 < len(labelled) <= charts.LABELS
    best = max(rows, key=lambda row: row["heldout"])
    assert best in labelled
    group = RUN.report.groups[best["group"]]
    verb = {"label": "missed", "prediction": "called"}[group.grouping]
    assert best["label"] == f"{verb} {group.class_name}"
    low, high = charts.scatter([row | {"base": base} for row, base in zip(rows, (0.0, 1.0) * 4, strict=True)])[
        "encoding"
    ]["x"]["scale"]["domain"]
    assert (low, high) == (0.0, 1.0)


def test_diary_rows__an_analysis_that_could_not_judge_a_mode_has_no_mark():
    history = [
        FailureReport(9, 0.5, (), epoch=epoch, modes=(ModeReport("cat 1", "cat", status, missed=missed, size=size),))
        for epoch, (status, missed, size) in enumerate([("new", 0, 5), ("missing", 0, 0), ("missing", 1, 0)])
    ]
    assert [(row["epoch"], row["size"]) for row in diary_rows(history)] == [(0, 5), (2, 0)]


def test_diary__ticks_are_analysed_epochs_and_line_ends_have_names():
    rows = diary_rows(RUN.history)
    drawn = charts.diary(rows)
    assert drawn["encoding"]["x"]["axis"]["values"] == [0, 1, 2, 3]
    labels = [row["label"] for row in rows if "label" in row]
    assert sorted(labels) == sorted({row["mode"] for row in rows})  # five modes: each has its name
    assert all(row["epoch"] == 3 for row in rows if "label" in row)
    assert len({row["mode"] for row in rows if row["line"] == "largest"}) == 1
    many = [row | {"epoch": row["epoch"] + 4 * k} for k in range(10) for row in rows]
    assert len(charts.diary(many)["encoding"]["x"]["axis"]["values"]) <= 10
