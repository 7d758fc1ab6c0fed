"""The sparse section for readers: sentences, lines and Markdown, and sections that cannot be read."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lightning_failures.data.report import FailureReport
from lightning_failures.report.sparse import sparse_lines, sparse_markdown, sparse_report, sparse_sentence

SECTION: dict[str, Any] = {
    "features": 64,
    "held_out": 100,
    "accuracy": 0.8,
    "dense_accuracy": 0.85,
    "features_per_class": 3.5,
    "chosen": 1,
    "fitted_on": {"source": "train", "examples": 500, "of": 900},
    "errors_examined": 20,
    "correct_examined": 80,
    "fixed": {"rate": 0.5, "interval": [0.3, 0.7]},
    "random_used": {"rate": 0.1, "interval": [0.0, 0.2]},
    "random_any": {"rate": 0.05, "interval": [0.0, 0.1]},
    "broken": {"rate": 0.25, "interval": [0.2, 0.3]},
    "curve": [
        {"lambda": 0.1, "features_per_class": 1.0, "accuracy": 0.6},
        {"lambda": 0.05, "features_per_class": 3.5, "accuracy": 0.8},
    ],
    "problematic": [
        {
            "feature": 17,
            "errors": 9,
            "share": 0.45,
            "fixed": 7,
            "pairs": [{"label": "<b>cat|", "prediction": "dog", "count": 9}],
            "error_ids": [3, 4],
        }
    ],
    "errors": [{"id": 3, "label": "<b>cat|", "prediction": "dog", "feature": 17, "gain": 2.5, "fixed": True}],
    "classes": [{"name": "<b>cat|", "features": 1, "weights": [{"feature": 4, "weight": -1.5}]}],
    "worth_masking": [
        {
            "feature": 17,
            "class": None,
            "fixed": 7,
            "broken": 1,
            "effect": 0.06,
            "interval": [0.02, 0.1],
            "p_value": 0.01,
        }
    ],
    "pairs": [{"first": "<b>cat|", "second": "dog", "shared": 1, "correlation": 0.2, "confusions": 9}],
    "names": [{"feature": 17, "name": "red stroke", "tag": "spurious", "action": None}],
    "top_ids": {"17": [3, 9]},
    "of a later version": 1,
}

CONDITIONS: list[dict[str, Any]] = [
    {
        "name": name,
        "prevalence": share,
        "balanced": share < 0.2,
        "held_out": 50,
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.1, accuracy + 0.1],
        "dense_accuracy": 0.9,
        "features": 4,
        "false_positives": 9,
        "false_negatives": 2,
        "fixed": {"rate": 0.5, "interval": [0.3, 0.7]},
        "random_used": {"rate": 0.1, "interval": [0.0, 0.2]},
        "broken": {"rate": 0.2, "interval": [0.1, 0.3]},
    }
    for name, share, accuracy in (("<b>cat|", 0.5, 0.85), ("dog", 0.1, 0.75))
]


def report_with(section: dict[str, Any]) -> FailureReport:
    return FailureReport(100, 0.8, (), methods={"sparse": section})


def test_sentence__has_the_controls():
    text = sparse_sentence(report_with(SECTION))
    assert "A last layer with 3.5 features a class, fitted to 500 training images" in text
    assert "fixes 50.0 % (30.0 to 70.0 %) of its 20 errors; a random feature of the wrong class 10.0 %" in text
    assert "breaks 25.0 % (20.0 to 30.0 %) of its 80 correct predictions" in text
    assert sparse_sentence(FailureReport(1, 1.0, ())) == ""
    assert "Zeroing" not in sparse_sentence(report_with(SECTION | {"errors_examined": 0}))


def test_lines_and_markdown__name_the_features():
    assert sparse_lines(report_with(SECTION))[1:] == [
        'feature 17 "red stroke": behind 9 errors, fixes 7; <b>cat| as dog (9)'
    ]
    text = sparse_markdown(report_with(SECTION))
    assert "| feature 17" in text
    assert "<b>" not in text
    assert "Worth masking everywhere: feature 17" in text
    assert (sparse_lines(FailureReport(1, 1.0, ())), sparse_markdown(FailureReport(1, 1.0, ()))) == ([], "")


def test_conditions__are_named_with_the_lowest_accuracy_first():
    masks = [SECTION["worth_masking"][0] | {"class": "dog"}]
    report = report_with(SECTION | {"chosen": None, "conditions": CONDITIONS, "worth_masking": masks})
    text = sparse_sentence(report)
    assert "Binary last layers of 2 conditions, with 3.5 features each" in text
    assert "balanced accuracy for rare conditions, 1 of them" in text
    assert "fixes 50.0 % (30.0 to 70.0 %) of their 20 errors; a random feature of the condition 10.0 %" in text
    dog, cat = sparse_lines(report)[1:3]
    assert dog == (
        "dog: 4 features, balanced accuracy 75.0 %, false positives 9, false negatives 2, one feature fixes 50.0 %"
    )
    assert cat.startswith("<b>cat|: 4 features, accuracy 85.0 %")
    table = sparse_markdown(report)
    assert table.index("75.0 % (balanced)") < table.index("| 85.0 % |")
    assert "<b>" not in table
    assert "(dog: 7 fixed, 1 broken)" in table


def test_shown__each_feature_once():
    assert sparse_report(report_with(SECTION)).shown == [17, 4]


@pytest.mark.parametrize("key", ["accuracy", "fixed", "problematic", "classes"])
def test_section_that_cannot_be_read__is_none(key):
    damaged = copy.deepcopy(SECTION)
    damaged[key] = "damaged"
    assert sparse_report(report_with(damaged)) is None


def test_right_reasons__accuracy_without_tagged_features_beside_the_plain_one():
    one = {"features": [17], "accuracy": 0.9, "masked_accuracy": 0.7, "gained": 1, "lost": 21, "examples": 100,
           "interval": [-0.28, -0.12]}  # fmt: skip
    section = SECTION | {"right_reasons": {"sparse": one, "model": None}}
    sentence = sparse_sentence(FailureReport(2, 0.5, (), methods={"sparse": section}))
    assert 'without feature 17 "red stroke" tagged spurious, the sparse layer is right on 70.0 % of 100' in sentence
    assert "(with all features 90.0 %; difference -28.0 to -12.0 points): 21 were right only because of it" in sentence
    both = section | {"right_reasons": {"sparse": one, "model": one | {"features": [3, 17]}}}
    assert "without 2 features tagged spurious, the model" in sparse_sentence(
        FailureReport(2, 0.5, (), methods={"sparse": both})
    )
    assert "right reasons" not in sparse_sentence(FailureReport(2, 0.5, (), methods={"sparse": SECTION}))
