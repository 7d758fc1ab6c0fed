"""Comparison of what methods rank first: shares by hand, attributes of a CSV file, and clear errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.method_comparison import compare_methods, comparison_text, read_attributes

RANKINGS = {"domino": {"cat": [0, 1, 9], "dog": [10, 11]}, "clusters": {"cat": [5, 6, 7]}}


def run(rankings=RANKINGS):
    """Two classes of ten; 0 ... 3 and 10, 11 fail; the directions rank 0, 1, 2 and 12, 13, 14 first."""
    ids = torch.arange(20)
    labels = (ids >= 10).long()
    failed = (ids < 4) | (ids == 10) | (ids == 11)
    values = torch.where(ids < 10, ids - 2.5, (ids - 12).abs().float() - 2.5)
    table = ExampleTable(
        ids, labels, torch.where(failed, 1 - labels, labels), 1 - ids / 20, values, -1 + 0 * ids, -1 + 0 * ids,
        ("cat", "dog"),
    )  # fmt: skip
    return FailureReport(20, 0.7, (), methods={"baselines": {"top": 3, "rankings": rankings}}), table


def test_compare__shares_of_failures_overlap_and_attributes():
    report, table = run()
    found = compare_methods(report, table, {"tint": {i: "red" if i in (0, 1) else "blue" for i in range(20)}}, top=2)
    assert found.classes == 1  # clusters rank the cats only
    rows = {row.method: row for row in found.rows}
    assert list(rows) == ["directions", "confidence", "domino", "clusters"]
    assert (rows["directions"].error_rate, rows["domino"].error_rate, rows["clusters"].error_rate) == (1.0, 1.0, 0.0)
    assert rows["confidence"].error_rate is None
    assert (rows["domino"].overlap, rows["clusters"].overlap, rows["confidence"].overlap) == (1.0, 0.0, 0.0)
    assert rows["directions"].shares == {"tint=red": 1.0, "tint=blue": 0.0}
    assert (found.base_error_rate, found.base_shares["tint=red"]) == (0.4, 0.2)
    text = comparison_text(found)
    assert "The 2 hardest examples of each of 1 classes" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["method", *rows, "all"]


def test_compare__earlier_analyses_rank_as_early_stopping_and_by_disagreement():
    report, table = run({"domino": {"cat": [0, 1, 9], "dog": [10, 11]}})
    certain = torch.full((20,), 0.5)
    first = replace(table, confidence=torch.where((table.ids == 7) | (table.ids == 17), 0.1, 0.9))
    second = replace(table, confidence=certain).where(table.ids != 3)  # an analysis that lacks an example
    rows = {row.method: row for row in compare_methods(report, table, top=1, earlier=[first]).rows}
    assert list(rows) == ["directions", "confidence", "early stopping", "disagreement", "domino"]
    assert rows["early stopping"].hardest == {"cat": (7,), "dog": (17,)}
    assert rows["early stopping"].error_rate is rows["disagreement"].error_rate is None
    assert rows["disagreement"].hardest == {"cat": (7,), "dog": (19,)}  # 0.1 -> 0.65, and 0.9 -> 0.05
    top = {row.method: row for row in compare_methods(report, table, top=10, earlier=[first, second]).rows}
    assert set(top["early stopping"].hardest["cat"]) == set(range(10))
    assert set(top["disagreement"].hardest["cat"]) == set(range(10)) - {3}
    without = replace(table, confidence=None)
    assert len(compare_methods(report, without, earlier=[first]).rows) == 2


def test_compare__metadata_of_the_run_need_no_file():
    report, table = run()
    codes = {"values": ["red", "blue"], "codes": [0 if i in (0, 1) else 1 for i in range(20)]}
    stored = {"ids": list(range(20)), "by_name": {"tint": codes}}
    section = report.methods["baselines"] | {"attributes": stored}
    found = compare_methods(replace(report, methods={"baselines": section}), table, top=2)
    assert found.rows[0].shares == {"tint=blue": 0.0, "tint=red": 1.0}
    section["attributes"] = stored | {"ids": [0]}  # damaged
    assert compare_methods(replace(report, methods={"baselines": section}), table).base_shares == {}


def test_compare__captions_of_each_method():
    report, table = run()
    section = report.methods["baselines"] | {"captions": {"domino": {"cat": "a photo of a wet cat"}}}
    cat = ClassReport("cat", 10, hardest_captions=("a photo of a dark cat",))
    report = replace(report, classes=(cat,), methods={"baselines": section})
    found = compare_methods(report, table)
    rows = {row.method: row for row in found.rows}
    assert rows["directions"].captions == {"cat": "a photo of a dark cat"}
    assert rows["domino"].captions == {"cat": "a photo of a wet cat"}
    assert not rows["clusters"].captions
    assert "cat: directions: dark cat; domino: wet cat" in comparison_text(found)


def test_compare__nothing_to_compare():
    report, table = run(rankings={})
    with pytest.raises(ConfigurationError, match="compare_methods=True"):
        compare_methods(report, table)
    with pytest.raises(DataError, match="No class is ranked by every method"):
        compare_methods(*run(rankings={"domino": {}}))


def test_compare__a_method_without_a_ranking_does_not_hide_the_others():
    ranked = {"domino": {"cat": [0, 1], "dog": [999]}, "clusters": {}}  # no such example; out of time
    found = compare_methods(*run(rankings=ranked), top=2)
    assert [row.method for row in found.rows] == ["directions", "confidence", "domino"]
    assert found.classes == 1
    assert found.rows[2].error_rate == 1.0


def test_attributes__of_a_csv_file(tmp_path):
    path = tmp_path / "tints.csv"
    path.write_text("id,tint,stroke\n3,red,\n5,blue,thin\n")
    assert read_attributes(path) == {"tint": {3: "red", 5: "blue"}, "stroke": {5: "thin"}}
    path.write_text("name,tint\na,red\n")
    with pytest.raises(ConfigurationError, match="column 'id'"):
        read_attributes(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_attributes(tmp_path / "none.csv")
