"""Groupings of examples, and one more that a test defines: pairs of classes that are confused."""

from __future__ import annotations

import numpy as np
import torch

from lightning_failures.analysis.fits import TreesFit
from lightning_failures.analysis.method import FitTask
from lightning_failures.core.arrays import as_array
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import GROUPINGS, LABEL, PREDICTION, GroupAssignment, Grouping, grouping_named
from lightning_failures.data.members import RowValues, members_of
from lightning_failures.data.partition import SINGLE_PROCESS, Partition


def graded(n: int = 600) -> Grades:
    """Return three classes, two of which are confused where the first feature is high."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, n))
    predictions = torch.where((labels == 1) & (features(n)[:, 0] > 0.8), 2, labels)
    return Grades(torch.arange(n), labels, predictions, torch.ones(n), ("cat", "dog", "wolf"))


def features(n: int = 600) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(n, 5))).float()


def confused_with_wolf(grades: Grades) -> GroupAssignment:
    """Return one group: the dogs, some of which are predicted as wolves."""
    dogs = as_array(grades.labels) == 1
    return GroupAssignment(("dog or wolf",), np.where(dogs, 0, -1), np.array([1]))


PAIRS = Grouping(
    "pair",
    "classes that are confused",
    confused_with_wolf,
    lambda grades: as_array(grades.predictions),
    "->",
)


def test_members__by_label_and_by_prediction():
    grades = graded()
    assert [len(members.rows) for members in members_of(grades)] == torch.bincount(grades.labels).tolist()
    assert [len(members.rows) for members in members_of(grades, PREDICTION)] == torch.bincount(
        grades.predictions
    ).tolist()


def test_members__rows_in_no_group_are_skipped():
    (group,) = members_of(graded(), PAIRS)
    assert group.name == "dog or wolf"
    assert (graded().labels[torch.from_numpy(group.rows)] == 1).all()


def test_trees__of_a_grouping_from_outside():
    grades, x = graded(), features()
    partition = Partition.of(grades, None, SINGLE_PROCESS)
    task = FitTask(grades, RowValues.of(x, grades, partition.predicted_rows, "features"), partition)
    found = TreesFit(groupings=(*GROUPINGS, PAIRS)).fit(task)
    assert [group.grouping for group in found.groups] == ["label"] * 3 + ["prediction"] * 3 + ["pair"]
    assert found.groups[-1].pattern
    assert "feature 0 >" in max(found.groups[-1].leaves, key=lambda leaf: leaf.importance).rule
    assert ("pair", "dog or wolf") in found.fitted


def test_grouping_named():
    assert grouping_named("label") is LABEL
    assert grouping_named("of a later version") is None
