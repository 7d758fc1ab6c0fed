"""Groupings: the ways to divide graded examples into groups, each of which gets a failure tree of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import IntArray
from lightning_failures.data.grades import Grades


@dataclass(frozen=True)
class GroupAssignment:
    """The group of every example.

    Attributes:
        names: G names of groups, as in reports; empty if the examples cannot be divided in this way.
        group: (N,) int64, the group of each row; -1 for rows in no group.
        owner_class: (G,) int64, the class whose process grows the tree. It must be the label or the prediction of all
            examples of the group, because a process holds the features of those rows only.
    """

    names: tuple[str, ...]
    group: IntArray
    owner_class: IntArray


@dataclass(frozen=True)
class Grouping:
    """A way to divide graded examples into groups.

    Attributes:
        name: Name in reports and tags, as in "label group".
        description: Explanation after the name in long titles; may be empty.
        assign: Returns the group of every example.
        shown_class: Returns (N,) int64, the class to show with an example: what its group does not already say. None
            if it is not known.
        prefix: Text before the name of the shown class, as in "-> dog".
    """

    name: str
    description: str
    assign: Callable[[Grades], GroupAssignment]
    shown_class: Callable[[Grades], IntArray | None]
    prefix: str

    @property
    def kind(self) -> str:
        """Name of this kind of group, with the description.

        >>> LABEL.kind, PREDICTION.kind
        ('label group', 'prediction group: examples predicted as this class')
        """
        return f"{self.name} group" + (f": {self.description}" if self.description else "")


def _labels(grades: Grades) -> IntArray:
    return as_array(grades.labels)


def _predictions(grades: Grades) -> IntArray | None:
    return None if grades.predictions is None else as_array(grades.predictions)


def _by_class(column: Callable[[Grades], IntArray | None]) -> Callable[[Grades], GroupAssignment]:
    """Return an assignment with one group per class; no group if the class is not known."""

    def assign(grades: Grades) -> GroupAssignment:
        group = column(grades)
        if group is None:
            return GroupAssignment((), np.full(len(grades), -1), np.empty(0, dtype=np.int64))
        return GroupAssignment(grades.class_names, group, np.arange(len(grades.class_names)))

    return assign


LABEL = Grouping("label", "", _by_class(_labels), _predictions, "->")
"""Examples with one label; their failures are false negatives of the class."""

PREDICTION = Grouping("prediction", "examples predicted as this class", _by_class(_predictions), _labels, "label:")
"""Examples with one prediction; their failures are false positives of the class."""

GROUPINGS = (LABEL, PREDICTION)
"""The groupings that failure trees are grown for, in the order of reports."""


def grouping_named(name: str) -> Grouping | None:
    """Return the grouping with the given name; None if this version has no such grouping."""
    return next((grouping for grouping in GROUPINGS if grouping.name == name), None)
