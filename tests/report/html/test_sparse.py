"""The sparse section of the page without a browser: what it selects, and that texts of users are escaped."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_failures.data.report import FailureReport
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.report.html.charts import sparsity_rows
from lightning_failures.report.html.render import render
from lightning_failures.report.html.sparse import sparse_view
from lightning_failures.report.run_folder import Run
from tests.report.test_sparse import CONDITIONS, SECTION, report_with


def a_picture(feature: int) -> Picture:
    tile = Tile(torch.zeros(3, 8, 8, dtype=torch.uint8), "text", 3)
    return Picture(f"sparse/{feature}", (Row("errors", (tile,)), Row("most active", (tile, tile))))


def test_view__takes_its_pictures():
    taken = []

    def take(tag: str):
        taken.append(tag)
        return (a_picture(int(tag.split("/")[1])),)

    view = sparse_view(report_with(SECTION), take)
    assert taken == ["sparse/17", "sparse/4"]
    assert (view.features[0].title, view.features[0].tag) == ('feature 17 "red stroke"', "spurious")
    (bar,) = view.classes[0].bars
    assert (bar.length, bar.positive, len(bar.tiles)) == (1.0, False, 2)
    assert sparse_view(FailureReport(1, 1.0, ()), take) is None


def test_chart__marks_the_layer():
    assert [row["layer"] for row in sparsity_rows(report_with(SECTION))] == ["other layers", "this layer"]
    assert sparsity_rows(FailureReport(1, 1.0, ())) == []


def test_page__has_the_section_and_escapes_names():
    report = report_with(SECTION)
    text = render(Run(Path("runs/a"), report, (report,), gallery=Gallery((a_picture(17), a_picture(5)))))
    assert 'id="sparse"' in text
    assert 'data-of="report/methods/sparse/problematic/0/errors"' in text
    assert "&lt;b&gt;cat|" in text
    assert "<b>cat" not in text
    assert "sparse/5" not in text
    plain = render(Run(Path("runs/a"), FailureReport(1, 1.0, ()), (FailureReport(1, 1.0, ()),)))
    assert 'id="sparse"' not in plain


def test_page__shows_conditions_and_their_mean_in_the_chart():
    report = report_with(SECTION | {"chosen": None, "conditions": CONDITIONS})
    text = render(Run(Path("runs/a"), report, (report,)))
    assert 'data-of="report/methods/sparse/conditions/1/false_negatives"' in text
    assert "a random feature of the condition fixes it" in text
    assert "&lt;b&gt;cat|" in text
    assert "<b>cat" not in text
    this = [row for row in sparsity_rows(report) if row["layer"] == "this layer"]
    assert [(row["features"], row["accuracy"]) for row in this] == [(3.5, 0.8)]
