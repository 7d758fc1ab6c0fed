"""Groupings: the ways to divide graded examples into groups, each of which gets a failure tree of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array
from lightning_failures.data.grades import Grades


@dataclass(frozen=True)
class GroupAssignment:
    """The group of every example.

    Attributes:
        names: G names of groups, as in reports.
        group: (N,) int64, the group of each row; -1 for rows in no group.
        owner_class: (G,) int64, the class whose process grows the tree. It must be the label or the prediction of all
            examples of the group, since a process holds the features of those rows only.
    """

    names: tuple[str, ...]
    group: NDArray[np.int64]
    owner_class: NDArray[np.int64]


@dataclass(frozen=True)
class Grouping:
    """A way to divide graded examples into groups.

    Attributes:
        name: Name in reports and tags, as in "label group".
        description: Addition to the name where there is room; may be empty.
        assign: Returns the group of every example.
        shown_class: Returns (N,) int64, the class that tells most about a failure in a group.
        prefix: Text before the name of that class, as in "-> dog".
    """

    name: str
    description: str
    assign: Callable[[Grades], GroupAssignment]
    shown_class: Callable[[Grades], NDArray[np.int64]]
    prefix: str

    @property
    def kind(self) -> str:
        """Name of a group for people.

        >>> LABEL.kind, PREDICTION.kind
        ('label group', 'prediction group: examples predicted as this class')
        """
        return f"{self.name} group" + (f": {self.description}" if self.description else "")


def _labels(grades: Grades) -> NDArray[np.int64]:
    return as_array(grades.labels)


def _predictions(grades: Grades) -> NDArray[np.int64]:
    return as_array(grades.predictions)


def _by_class(column: Callable[[Grades], NDArray[np.int64]]) -> Callable[[Grades], GroupAssignment]:
    """Return an assignment with one group for each class."""
    return lambda grades: GroupAssignment(grades.class_names, column(grades), np.arange(len(grades.class_names)))


LABEL = Grouping("label", "", _by_class(_labels), _predictions, "->")
"""Examples of one label: their failures are false negatives."""

PREDICTION = Grouping("prediction", "examples predicted as this class", _by_class(_predictions), _labels, "label:")
"""Examples of one prediction: their failures are false positives."""

GROUPINGS = (LABEL, PREDICTION)
"""The groupings of failure trees, in the order of reports."""


def grouping_named(name: str) -> Grouping | None:
    """Return the grouping of a report by its name; None if this version does not know it."""
    return next((grouping for grouping in GROUPINGS if grouping.name == name), None)
