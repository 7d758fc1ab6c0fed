"""Groupings of examples, and one more that a test defines: pairs of classes that are confused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.fits import TreesFit
from lightning_failures.analysis.method import FitTask
from lightning_failures.core.arrays import as_array
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import (
    GROUPINGS,
    LABEL,
    MAX_PAIRS,
    PAIR,
    PREDICTION,
    UNION,
    GroupAssignment,
    Grouping,
    chosen_groupings,
    grouping_named,
)
from lightning_failures.data.members import RowValues, members_of
from lightning_failures.data.partition import SINGLE_PROCESS, Partition
from lightning_failures.errors import ConfigurationError


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
    assert grouping_named("pair") is PAIR
    assert grouping_named("of a later version") is None


# -- confused pairs ------------------------------------------------------------------------------------------


def confused(n: int = 900, seed: int = 0) -> tuple[Grades, torch.Tensor]:
    """Return cats that are dogs at random, and dogs that are wolves where feature 0 is high; feature 3 is the class."""
    rng = np.random.default_rng(seed)
    labels, x = np.arange(n) % 3, rng.normal(size=(n, 6)).astype(np.float32)
    x[:, 3] += 10 * labels
    predictions = labels.copy()
    predictions[(labels == 0) & (rng.random(n) < 0.25)] = 1
    predictions[(labels == 1) & (x[:, 0] > 0.8) & (rng.random(n) < 0.9)] = 2
    names = ("cat", "dog", "wolf")
    return Grades(torch.arange(n), torch.tensor(labels), torch.tensor(predictions), torch.ones(n), names), torch.tensor(
        x
    )


def test_pairs__a_planted_one_is_found_and_a_random_one_is_not():
    grades, x = confused()
    groups = {group.class_name: group for group in analyse(grades, features=x, groupings=["pair"]).groups}
    assert set(groups) == {"cat -> dog", "dog -> wolf"}
    planted = groups["dog -> wolf"]
    assert planted.pattern
    assert "feature 0 >" in planted.leaves[0].rule
    assert planted.leaves[0].heldout_valid
    assert not groups["cat -> dog"].pattern  # although feature 3 tells cats from dogs
    assert planted.heldout_aler_minus_ber > 0.3 > groups["cat -> dog"].heldout_aler_minus_ber + 0.2


def test_pairs__members_are_the_mistaken_and_the_correct_of_the_label():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 1, 1, 2, 1, 0, 2])
    grades = Grades(torch.arange(7), labels, predictions, torch.ones(7), ("a", "b", "c"))
    assert {one.name: one.rows.tolist() for one in members_of(grades, PAIR)} == {
        "a -> b": [0, 1, 2],
        "a -> c": [0, 3],
        "b -> a": [4, 5],
    }
    assert members_of(grades, PAIR)[0].name == "a -> b"  # most failures first
    assert PAIR.assign(grades).owner_class.tolist() == [0, 0, 1]
    sampled = np.arange(7) != 1
    assert members_of(grades, PAIR, sampled)[0].rows.tolist() == [0, 2]


def test_pairs__the_most_frequent_of_many():
    labels = torch.arange(700) % 7
    predictions = (labels + torch.arange(700) // 7 % 7) % 7
    names = tuple("abcdefg")
    grades = Grades(torch.arange(700), labels, predictions, torch.ones(700), names)
    assert len(members_of(grades, PAIR)) == MAX_PAIRS
    assert (
        members_of(Grades(torch.arange(3), torch.arange(3), torch.arange(3), torch.ones(3), tuple("abc")), PAIR) == []
    )


def test_pairs_and_unions__none_without_predictions():
    grades, x = confused(90)
    verdicts = Grades(grades.ids, grades.labels, None, None, grades.class_names, verdicts=grades.correct)
    assert [group.grouping for group in analyse(verdicts, features=x, groupings=["label", "pair", "union"]).groups] == [
        "label"
    ] * 3


def test_unions__label_or_prediction():
    grades = graded()
    for k, union in enumerate(members_of(grades, UNION)):
        assert union.rows.tolist() == torch.nonzero((grades.labels == k) | (grades.predictions == k))[:, 0].tolist()
        assert union.name == grades.class_names[k]


# -- metadata and clusters -----------------------------------------------------------------------------------


def of_old_cameras(n: int = 900) -> tuple[Grades, torch.Tensor, list[str | None]]:
    """Return examples of which those of the old camera fail where feature 2 is high, in all classes."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(n, 6)).astype(np.float32), np.arange(n) % 3
    camera = np.array(["old", "new", None], dtype=object)[np.arange(n) // 3 % 3]
    wrong = (camera == "old") & (x[:, 2] > 0.5)
    predictions = np.where(wrong | (rng.random(n) < 0.1), (labels + 1) % 3, labels)
    names = ("cat", "dog", "wolf")
    grades = Grades(torch.arange(n), torch.tensor(labels), torch.tensor(predictions), torch.ones(n), names)
    return grades, torch.tensor(x), camera.tolist()


def test_metadata__every_value_gets_a_tree():
    grades, x, camera = of_old_cameras()
    found = analyse(
        grades, features=x, metadata={"camera": camera, "even": np.arange(900) % 2 == 0}, groupings=["metadata"]
    )
    groups = {group.class_name: group for group in found.groups}
    assert list(groups) == ["camera = new", "camera = old", "camera = missing", "even = False", "even = True"]
    assert [groups[name].size for name in groups] == [300, 300, 300, 450, 450]
    assert groups["camera = old"].pattern
    assert "feature 2 >" in groups["camera = old"].leaves[0].rule
    assert not groups["camera = new"].pattern


def test_clusters__every_cluster_gets_a_tree_beside_the_default_ones():
    grades, x, camera = of_old_cameras()
    found = analyse(grades, features=x, clusters=camera)
    assert [(group.grouping, group.class_name) for group in found.groups[-2:]] == [
        ("cluster", "new"),
        ("cluster", "old"),
    ]
    assert [group.grouping for group in found.groups[:-2]] == ["label"] * 3 + ["prediction"] * 3
    assert [group.pattern for group in found.groups[-2:]] == [False, True]
    assert [group.size for group in found.groups[-2:]] == [300, 300]  # None is no cluster


def test_values__those_with_the_most_failures_of_many():
    n = 900
    grades, _ = confused(n)
    cluster = np.arange(n) % 300
    cluster[grades.failed.numpy()] = 7
    (grouping,) = chosen_groupings([], clusters=SimpleNamespace(codes=cluster, values=[str(k) for k in range(300)]))
    groups = members_of(grades, grouping)
    assert len(groups) == 100
    assert "7" in {group.name for group in groups}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groupings": ["labels"]}, "label, prediction, pair, union, metadata; got 'labels'"),
        ({"groupings": ["cluster"]}, "got 'cluster'"),
        ({"groupings": ["metadata"]}, "'metadata' needs attributes"),
    ],
)
def test_chosen_groupings__refused(options, message):
    grades, x = confused(90)
    with pytest.raises(ConfigurationError, match=message):
        analyse(grades, features=x, **options)


def test_values__need_one_row_for_each_example():
    grades, x = confused(90)
    twice = Grades(grades.ids // 2, grades.labels, grades.predictions, grades.confidence, grades.class_names)
    with pytest.raises(ConfigurationError, match="one row for each example"):
        analyse(twice, features=x, clusters=np.arange(90) % 2)


def test_groupings__by_default_label_and_prediction():
    grades, x = confused(300)
    default, named = analyse(grades, features=x), analyse(grades, features=x, groupings=[LABEL, "prediction"])
    assert [group.to_dict() for group in default.groups] == [group.to_dict() for group in named.groups]


class TwoProcesses:
    rank, world_size = 0, 2

    def gather_results(self, work):
        return [work(), work()]


def test_trees__several_processes_refuse_groups_of_several_classes():
    grades, x = confused(90)
    partition = Partition.of(grades, None, TwoProcesses())
    task = FitTask(grades, RowValues.of(x[partition.predicted_rows], grades, partition.predicted_rows, "x"), partition)
    (clusters,) = chosen_groupings([], clusters=SimpleNamespace(codes=np.arange(90) % 2, values=["a", "b"]))
    with pytest.raises(ConfigurationError, match="cluster need a single process, got 2"):
        TreesFit(groupings=(LABEL, clusters)).fit(task)
