"""Groupings: the ways to divide graded examples into groups, each of which gets a failure tree of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.errors import ConfigurationError

MAX_PAIRS = 20
"""Maximum number of confused pairs: those with the most failures."""

MOST_CLUSTERS = 1000
"""Maximum number of clusters that are read: the largest ones; the others become one."""

MAX_VALUES = 100
"""Maximum number of groups of values, of metadata or of clusters: those with the most failures."""


@dataclass(frozen=True)
class GroupAssignment:
    """The group of every example.

    Attributes:
        names: G names of groups, as in reports; empty if the examples cannot be divided in this way.
        group: (N,) int64, the group of each row; -1 for rows in no group. Where groups overlap (N, M), up to M distinct
            groups of each row, the other columns -1.
        owner_class: (G,) int64, the class whose process grows the tree. It must be the label or the prediction of all
            examples of the group, because a process holds the features of those rows only; except if the grouping is
            ``across_classes``.
    """

    names: tuple[str, ...]
    group: IntArray
    owner_class: IntArray

    def rows_of(self, name: str) -> BoolArray:
        """Return which rows belong to the group with a name: (N,) bool."""
        group = self.group if self.group.ndim == 2 else self.group[:, None]
        return np.asarray((group == self.names.index(name)).any(axis=1))


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
        across_classes: Whether a group may hold examples of several classes. Its tree can be grown by a single process
            only, since each of several holds the features of its own classes.
    """

    name: str
    description: str
    assign: Callable[[Grades], GroupAssignment]
    shown_class: Callable[[Grades], IntArray | None]
    prefix: str
    across_classes: bool = False

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


def _no_groups(grades: Grades) -> GroupAssignment:
    return GroupAssignment((), np.full(len(grades), -1), np.empty(0, dtype=np.int64))


def _by_class(column: Callable[[Grades], IntArray | None]) -> Callable[[Grades], GroupAssignment]:
    """Return an assignment with one group per class; no group if the class is not known."""

    def assign(grades: Grades) -> GroupAssignment:
        group = column(grades)
        if group is None:
            return _no_groups(grades)
        return GroupAssignment(grades.class_names, group, np.arange(len(grades.class_names)))

    return assign


def _unions(grades: Grades) -> GroupAssignment:
    """Return one group per class: the examples with this label or this prediction."""
    labels, predictions = _labels(grades), _predictions(grades)
    if predictions is None:
        return _no_groups(grades)
    group = np.stack([labels, np.where(predictions == labels, -1, predictions)], axis=1)
    return GroupAssignment(grades.class_names, group, np.arange(len(grades.class_names)))


def _confused_pairs(grades: Grades) -> GroupAssignment:
    """Return one group for each of the pairs (label, wrong prediction) with the most failures."""
    labels, predictions, failed = _labels(grades), _predictions(grades), as_array(grades.failed)
    if predictions is None:
        return _no_groups(grades)
    n_classes = len(grades.class_names)
    confused = failed & (predictions != labels)
    pairs, counts = np.unique(labels[confused] * n_classes + predictions[confused], return_counts=True)
    pairs = pairs[np.argsort(-counts, kind="stable")[:MAX_PAIRS]]

    # a correct example belongs to all pairs of its label, one a column
    n_columns = np.bincount(pairs // n_classes, minlength=1).max()
    group = np.full((len(labels), n_columns), -1)
    n_used = np.zeros(n_classes, dtype=np.int64)
    for i, (label, prediction) in enumerate(zip(pairs // n_classes, pairs % n_classes, strict=True)):
        rows = (labels == label) & (~failed | (predictions == prediction))
        group[rows, n_used[label]] = i
        n_used[label] += 1
    names = tuple(f"{grades.class_names[p // n_classes]} -> {grades.class_names[p % n_classes]}" for p in pairs)
    return GroupAssignment(names, group, pairs // n_classes)


LABEL = Grouping("label", "", _by_class(_labels), _predictions, "->")
"""Examples with one label; their failures are false negatives of the class."""

PREDICTION = Grouping("prediction", "examples predicted as this class", _by_class(_predictions), _labels, "label:")
"""Examples with one prediction; their failures are false positives of the class."""

PAIR = Grouping("pair", "examples of one class, mistaken for another or correct", _confused_pairs, _predictions, "->")
"""Confused pairs a -> b: the examples with label a that are mistaken for b, and the correct ones with label a.

Algorithm 1 of Barlow takes a cluster with failures and successes. The correct examples with label b are left out: all
of them are successes, so that a tree which merely separates the two classes would pass for an explanation of failures.
"""

UNION = Grouping("union", "examples with this label or this prediction", _unions, _predictions, "->")
"""Union of the label group and the prediction group of a class."""

METADATA = Grouping("metadata", "examples with this value", _no_groups, _predictions, "->", across_classes=True)
"""Examples with one value of a metadata attribute; :func:`chosen_groupings` adds the values."""

CLUSTER = Grouping("cluster", "examples of this cluster", _no_groups, _predictions, "->", across_classes=True)
"""Examples of one cluster of the user; :func:`chosen_groupings` adds the clusters."""

GROUPINGS = (LABEL, PREDICTION)
"""The groupings that failure trees are grown for by default, in the order of reports."""

DEFAULT_GROUPINGS = tuple(grouping.name for grouping in GROUPINGS)
"""Their names."""

ALL_GROUPINGS = (LABEL, PREDICTION, PAIR, UNION, METADATA, CLUSTER)
"""The groupings that this version has, in the order of pictures."""

SELECTABLE = tuple(grouping.name for grouping in ALL_GROUPINGS if grouping is not CLUSTER)
"""The names of the groupings that can be chosen by name; clusters are chosen by giving them."""


class CodedValues(Protocol):
    """A value for each of N rows."""

    @property
    def codes(self) -> IntArray:
        """(N,) int64, indices into ``values``."""

    @property
    def values(self) -> Sequence[str]:
        """The value of each code, as text."""


def chosen_groupings(
    chosen: Sequence[str | Grouping],
    metadata: Mapping[str, CodedValues] | None = None,
    clusters: CodedValues | None = None,
) -> tuple[Grouping, ...]:
    """Return groupings by name, with the values of metadata and clusters that they need.

    Args:
        chosen: Names out of :data:`SELECTABLE`, or groupings, which stay as they are.
        metadata: Attributes of N rows by name, for "metadata".
        clusters: Clusters of N rows; if given, the grouping by clusters is added. Rows with the value "missing" are in
            no cluster.

    Raises:
        ConfigurationError: A name is unknown, or "metadata" is chosen without metadata.

    >>> [grouping.name for grouping in chosen_groupings(["label", "pair"])]
    ['label', 'pair']
    """
    found = []
    for one in chosen:
        grouping = grouping_named(one) if isinstance(one, str) else one
        if grouping is None or (isinstance(one, str) and one not in SELECTABLE):
            raise ConfigurationError(f"groupings must be names out of {', '.join(SELECTABLE)}; got {one!r}.")
        if one == METADATA.name:
            if not metadata:
                raise ConfigurationError("groupings: 'metadata' needs attributes: give metadata, or leave it out.")
            named = [
                (values.codes, [f"{name} = {value}" for value in values.values]) for name, values in metadata.items()
            ]
            grouping = replace(METADATA, assign=_by_values(named))
        found.append(grouping)
    if clusters is not None:
        known = [None if value == "missing" else value for value in clusters.values]
        found.append(replace(CLUSTER, assign=_by_values([(clusters.codes, known)])))
    return tuple(found)


def _by_values(columns: Sequence[tuple[IntArray, Sequence[str | None]]]) -> Callable[[Grades], GroupAssignment]:
    """Return an assignment with one group for each value with the most failures; a value None is no group.

    Args:
        columns: For each attribute the (N,) codes of the rows, and the name of the group of each code.
    """

    def assign(grades: Grades) -> GroupAssignment:
        if len(np.unique(as_array(grades.ids))) < len(grades):
            raise ConfigurationError(
                "Groups by metadata or clusters need one row for each example, which a multilabel task does not have:"
                " choose other groupings, and no clusters."
            )
        failed = as_array(grades.failed)
        names: list[str] = []
        failures: list[int] = []
        group = np.full((len(grades), len(columns)), -1)
        for column, (codes, values) in enumerate(columns):
            for code, name in enumerate(values):
                rows = codes == code
                if name is not None and rows.any():
                    group[rows, column] = len(names)
                    names.append(name)
                    failures.append(int(failed[rows].sum()))
        kept = np.sort(np.argsort(-np.array(failures, dtype=np.int64), kind="stable")[:MAX_VALUES])
        new_number = np.full(len(names) + 1, -1)  # the last for rows in no group
        new_number[kept] = np.arange(len(kept))
        owner = np.zeros(len(kept), dtype=np.int64)
        return GroupAssignment(tuple(names[i] for i in kept), new_number[group], owner)

    return assign


def grouping_named(name: str) -> Grouping | None:
    """Return the grouping with the given name; None if this version has no such grouping."""
    return next((grouping for grouping in ALL_GROUPINGS if grouping.name == name), None)


def check_processes(groupings: Sequence[Grouping], world_size: int) -> None:
    """Refuse groups of several classes if there are several processes.

    Raises:
        ConfigurationError: With the groupings and the remedy.

    >>> check_processes(ALL_GROUPINGS, 1)
    """
    across = [grouping.name for grouping in groupings if grouping.across_classes]
    if across and world_size > 1:
        raise ConfigurationError(
            f"Trees of the groupings {', '.join(across)} need a single process, got {world_size}: each process holds"
            " the features of its own classes, and these groups hold examples of several. Analyse with one process, or"
            " leave out the grouping 'metadata' and clusters."
        )
