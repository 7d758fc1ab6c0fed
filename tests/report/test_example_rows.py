"""What is known of single examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import FailureReport, FeatureReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.example_rows import ExampleLookup, example_rows, leaf_rules
from lightning_failures.report.gallery import Gallery, Thumbnails
from lightning_failures.report.html.browse import browsing_data
from tests.writers.analyses import NASTY, report, table

MULTILABEL = ("no edema", "edema", "no nodule", "nodule")


def multilabel() -> ExampleTable:
    """Three examples with two conditions each: 2 is right twice, 4 misses edema, 6 sees a nodule that is not there."""
    ids = torch.tensor([2, 2, 4, 4, 6, 6])
    labels = torch.tensor([1, 3, 1, 3, 0, 2])
    predictions = torch.tensor([1, 3, 0, 3, 0, 3])
    confidence = torch.tensor([0.9, 0.8, 0.3, 0.7, 0.6, 0.1])
    values = torch.tensor([0.5, 0.5, -0.5, 0.5, 0.5, -0.5])
    return ExampleTable.of(Grades(ids, labels, predictions, confidence, MULTILABEL), values, {})


def test_lookup__multilabel_by_class_else_by_what_failed():
    lookup = ExampleLookup(multilabel())
    assert [lookup.row(4, name) for name in ("edema", "nodule")] == [2, 3]
    assert lookup.row(6, "nodule") == 5  # by its prediction: in the picture of a prediction group
    assert lookup.row(6, "edema") is None
    assert [lookup.row(example) for example in (2, 4, 6, 5)] == [1, 2, 5, None]
    assert lookup.class_names(5) == ("no nodule", "nodule")
    assert ExampleLookup(None).row(2) is None


def test_lookup__page_and_writers_agree_on_multilabel():
    """All rows of an example can be browsed on the page; the one row that a writer shows is one of them."""
    of = multilabel()
    rules = (LeafReport("feature 3 > 0", 5, 0.5, 0.5, 0.2, True), LeafReport("feature 3 <= 0", 5, 0.5, 0.5, 0.2, True))
    pattern = GroupReport("label", "edema", 6, pattern=True, leaves=rules)
    noise = replace(pattern, class_name="nodule", pattern=False)
    report, shown_table = (
        FailureReport(6, 0.5, (), groups=(pattern, noise)),
        replace(of, label_leaf=torch.zeros(6).long()),
    )
    ids = torch.tensor([2, 4, 6])
    shown = Gallery(thumbnails=Thumbnails(ids, torch.zeros(3, 3, 8, 8, dtype=torch.uint8)))
    page = browsing_data(shown_table, shown, report)
    browsed = {(row[1], row[2]): row for row in page["rows"]}
    for example in example_rows(report, shown_table, ids):
        row = browsed[example.id, MULTILABEL.index(example.label)]
        assert MULTILABEL[row[3]] == example.prediction
        assert row[4] == example.confidence
        assert row[5] == example.decision_value
        rule = page["rules"].get(str(row[2]), [None])[row[6]]
        assert (rule or "").replace("\N{LESS-THAN OR EQUAL TO}", "<=") == (example.leaf or "")
    assert [row.right for row in example_rows(report, shown_table, ids)] == [True, False, False]
    assert set(page["rules"]) == {"1"}  # without a pattern the leaves describe noise, on the page too
    assert leaf_rules(report) == {"edema": ["feature 3 > 0", "feature 3 <= 0"]}


def test_example_rows__what_is_known():
    rules = tuple(LeafReport(f"feature 3 > {k}", 5, 0.5, 0.5, 0.2, True) for k in range(2))
    found = GroupReport("label", "cat", 6, pattern=True, leaves=rules)
    noise = replace(found, class_name=NASTY, pattern=False)
    of = replace(table(), label_leaf=torch.arange(12) // 2 % 3 - 1)
    rows = example_rows(
        report(groups=(found, noise), features=(FeatureReport(3, name="red"),)), of, of.ids[[2, 3, 1, 6]]
    )
    assert [(row.id, row.label, row.right) for row in rows] == [
        (10, "cat", True), (15, NASTY, False), (5, NASTY, True), (30, "cat", False),
    ]  # fmt: skip
    assert rows[0].leaf == 'feature 3 "red" > 0'
    assert rows[1].leaf is None  # no pattern: the leaves describe noise
    assert rows[3].leaf is None  # -1
    assert (rows[2].decision_value, rows[2].flagged) == (None, None)
    assert rows[0].flagged is True
    assert rows[0].confidence == pytest.approx(float(of.confidence[2]))
