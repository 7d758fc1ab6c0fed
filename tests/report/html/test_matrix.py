"""The confusion matrix, counted in the table of examples."""

from __future__ import annotations

import dataclasses

import torch

from lightning_failures.report.html.matrix import confusion_matrix
from tests.report.html.a_run import a_run

TABLE = a_run().table


def test_confusion_matrix__counts_are_those_of_the_table():
    matrix = confusion_matrix(TABLE)
    for label in matrix.classes:
        for prediction in matrix.classes:
            both = (TABLE.labels == label) & (TABLE.predictions == prediction)
            assert matrix.count(label, prediction) == int(both.sum())
    assert sum(sum(row.values()) for row in matrix.counts.values()) == len(TABLE)
    assert max(matrix.heat(a, b) for a in matrix.classes for b in matrix.classes) == 1.0
    assert matrix.heat(0, 0) == 0.0


def test_confusion_matrix__classes_with_most_confusions_stay():
    everyone = confusion_matrix(TABLE)
    few = confusion_matrix(TABLE, 2)
    assert len(few.classes) == 2
    assert few.omitted == len(everyone.classes) - 2

    def mistakes(k):
        return int(((TABLE.labels == k) ^ (TABLE.predictions == k)).sum())

    assert min(map(mistakes, few.classes)) >= max(mistakes(k) for k in everyone.classes if k not in few.classes)


def test_confusion_matrix__none_without_predictions_or_for_conditions():
    verdicts = dataclasses.replace(TABLE, predictions=None, verdicts=torch.ones(len(TABLE), dtype=torch.bool))
    conditions = dataclasses.replace(TABLE, ids=TABLE.ids // 6)
    right = dataclasses.replace(TABLE, predictions=TABLE.labels)
    assert [confusion_matrix(one) for one in (None, verdicts, conditions, right)] == [None] * 4
