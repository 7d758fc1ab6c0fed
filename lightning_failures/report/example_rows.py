"""What is known of single examples, as rows that a table or a projector shows beside their thumbnails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.report.feature_names import names_in, with_names


@dataclass(frozen=True)
class ExampleRow:
    """One example. ``leaf`` is the rule of its label group that it follows, where that tree shows a pattern."""

    id: int
    label: str
    prediction: str
    right: bool
    confidence: float
    decision_value: float | None
    flagged: bool | None
    leaf: str | None


def example_rows(report: FailureReport, ids: Tensor) -> list[ExampleRow]:
    """Look examples up in the table of a report.

    In a multilabel task an example has a row for each condition: the one of least confidence in what is true is taken.

    Args:
        report: Its ``table`` holds the examples; without one there are no rows.
        ids: (n,) int64, all of them in the table.

    >>> from lightning_failures.data.grades import Grades
    >>> import torch
    >>> confidence, label = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([0, 1, 0])
    >>> grades = Grades(torch.tensor([4, 4, 7]), label, torch.zeros(3).long(), confidence, ("no tumour", "tumour"))
    >>> table = ExampleTable.of(grades, None, {})
    >>> row, _ = example_rows(FailureReport(2, None, (), table=table), torch.tensor([4, 7]))
    >>> row.label, row.prediction, row.right, row.decision_value
    ('tumour', 'no tumour', False, None)
    """
    table = report.table
    if table is None:
        return []
    order = np.lexsort((table.confidence.numpy(), table.ids.numpy()))
    rows = order[np.searchsorted(table.ids.numpy()[order], ids.numpy())]
    rules = _rules(report)
    return [_row(table, row, rules) for row in rows.tolist()]


def _rules(report: FailureReport) -> dict[str, list[str]]:
    """Class name -> the rules of its label group's leaves, where there is a pattern."""
    names = names_in(report.features)
    return {
        group.class_name: [with_names(leaf.rule, names) for leaf in group.leaves]
        for group in report.groups
        if group.grouping == "label" and group.pattern
    }


def _row(table: ExampleTable, row: int, rules: dict[str, list[str]]) -> ExampleRow:
    label, guess = (table.class_names[int(column[row])] for column in (table.labels, table.predictions))
    value, leaf = float(table.values[row]), int(table.label_leaf[row])
    judged = not math.isnan(value)
    return ExampleRow(
        id=int(table.ids[row]),
        label=label,
        prediction=guess,
        right=not bool(table.failed[row]),
        confidence=float(table.confidence[row]),
        decision_value=value if judged else None,
        flagged=value < 0 if judged else None,
        leaf=rules[label][leaf] if leaf >= 0 and label in rules else None,
    )
