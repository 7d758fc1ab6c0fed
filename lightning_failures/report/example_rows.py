"""What is known of single examples, for tables and the projector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.report.feature_names import names_in, with_names


@dataclass(frozen=True)
class ExampleRow:
    """One example. ``leaf`` is the rule that it follows in the tree of its label group, if that tree has a pattern.

    Of a task without predicted classes, ``prediction`` is "right" or "wrong" and ``confidence`` is None.
    """

    id: int
    label: str
    prediction: str
    right: bool
    confidence: float | None
    decision_value: float | None
    flagged: bool | None
    leaf: str | None


class ExampleLookup:
    """Finds the row of an example in the table of an analysis.

    In a multilabel task an example has one row a condition. An example that is shown for a class is the row of that
    class; otherwise it is the row of the least confidence in the truth, the condition that most likely failed.

    >>> from lightning_failures.data.grades import Grades
    >>> confidence, label = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([0, 1, 0])
    >>> names = ("no tumour", "tumour")
    >>> grades = Grades(torch.tensor([4, 4, 7]), label, torch.zeros(3).long(), confidence, names)
    >>> lookup = ExampleLookup(ExampleTable.of(grades, None, {}))
    >>> lookup.row(4), lookup.row(4, "no tumour"), lookup.row(7, "tumour"), lookup.row(5)
    (1, 0, None, None)
    """

    def __init__(self, table: ExampleTable | None) -> None:
        self._table = table
        self._classes = {} if table is None else {name: index for index, name in enumerate(table.class_names)}

    def row(self, example: int, class_name: str | None = None) -> int | None:
        """Return the index of the row of an example in the table, or None if there is none.

        Args:
            example: Its id.
            class_name: The class for which the example is shown: its label, else its prediction. None: any class.
        """
        if self._table is None:
            return None
        first = int(torch.searchsorted(self._table.ids, example))
        last = int(torch.searchsorted(self._table.ids, example, right=True))
        if class_name is not None:
            return self._row_of_class(range(first, last), class_name)
        confidence = self._table.confidence
        if first == last or confidence is None:
            return first if first < last else None
        return first + int(confidence[first:last].argmin())

    def _row_of_class(self, rows: range, class_name: str) -> int | None:
        assert self._table is not None
        wanted = self._classes.get(class_name)
        for column in (self._table.labels, self._table.predictions):
            for row in rows:
                if column is not None and int(column[row]) == wanted:
                    return row
        return None

    def class_names(self, row: int) -> tuple[str, str]:
        """Return the names of the label and of the predicted class of a row, or "right" or "wrong" if it has none."""
        assert self._table is not None
        names, predictions = self._table.class_names, self._table.predictions
        label = names[int(self._table.labels[row])]
        if predictions is None:
            return label, "wrong" if self._table.failed[row] else "right"
        return label, names[int(predictions[row])]

    def failed(self, row: int) -> bool:
        """Return whether the model is wrong on a row."""
        assert self._table is not None
        return bool(self._table.failed[row])

    @property
    def has_confidence(self) -> bool:
        """Whether the confidence in the true class is known."""
        return self._table is not None and self._table.confidence is not None


def example_rows(report: FailureReport, table: ExampleTable, ids: Tensor) -> list[ExampleRow]:
    """Return what is known of some examples, see :class:`ExampleLookup`.

    Args:
        report: Names of features and rules of leaves.
        table: The examples.
        ids: (n,) int64, all of them in the table.
    """
    lookup = ExampleLookup(table)
    rows = [lookup.row(example) for example in ids.tolist()]
    return rows_at(report, table, [row for row in rows if row is not None])


def rows_at(report: FailureReport, table: ExampleTable, rows: Iterable[int]) -> list[ExampleRow]:
    """Return what is known of the examples at some rows of the table, indices in [0, N)."""
    lookup, rules = ExampleLookup(table), leaf_rules(report)
    return [_example_row(table, row, lookup, rules) for row in rows]


def leaf_rules(report: FailureReport) -> dict[str, list[str]]:
    """Return the rules of the leaves of each class's label tree, by class name, for trees with a pattern.

    Without a pattern the rules are noise.
    """
    names = names_in(report.features)
    trees = [group for group in report.groups if group.grouping == "label" and group.pattern]
    rules: dict[str, list[str]] = {}
    for group in trees:
        rules[group.class_name] = [with_names(leaf.rule, names) for leaf in group.leaves]
    return rules


def _example_row(table: ExampleTable, row: int, lookup: ExampleLookup, rules: dict[str, list[str]]) -> ExampleRow:
    label, prediction = lookup.class_names(row)
    value, leaf = float(table.values[row]), int(table.label_leaf[row])
    has_direction = not math.isnan(value)
    return ExampleRow(
        id=int(table.ids[row]),
        label=label,
        prediction=prediction,
        right=not bool(table.failed[row]),
        confidence=None if table.confidence is None else float(table.confidence[row]),
        decision_value=value if has_direction else None,
        flagged=value < 0 if has_direction else None,
        leaf=rules[label][leaf] if leaf >= 0 and label in rules else None,
    )
