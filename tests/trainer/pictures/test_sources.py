"""Which trees are displayed, and the outcome of their examples."""

import dataclasses

import pytest
import torch

from lightning_failures.data.grades import Grades
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.trainer.pictures.sources import (
    EmbeddingTable,
    ExampleOutcome,
    displayed_members,
    displayed_trees,
    example_outcomes,
    kept_images,
    with_examples_among,
)


def test_displayed_trees__label_and_prediction_groups_in_turn(planted):
    report = planted[-1]
    (tree,) = {id(tree): tree for tree in report.trees.values() if len(tree.leaves) > 1}.values()

    def group(grouping, name, importance, pattern=True):
        leaves = tuple(LeafReport("", 9, 0.5, 0.5, value, True) for value in (importance, 0.0))
        return GroupReport(grouping, name, 9, pattern=pattern, leaves=leaves)

    groups = (
        group("prediction", "a", 0.9),
        group("prediction", "b", 0.8),
        group("prediction", "c", 0.7),
        group("label", "a", 0.1),
        group("label", "b", 0.2),
        group("label", "c", 0.9, pattern=False),
    )
    found = dataclasses.replace(
        report.with_report(groups=groups), trees={(g.grouping, g.class_name): tree for g in groups}
    )
    names = ["label/b", "prediction/a", "label/a", "prediction/b", "prediction/c"]
    assert [one.name for one in displayed_trees(found, 9)] == names
    assert [one.name for one in displayed_trees(found, 3)] == names[:3]
    assert displayed_trees(found, 0) == []


def test_embedding_table__by_id():
    table = EmbeddingTable(torch.tensor([2, 5, 9]), torch.tensor([[0.2], [0.5], [0.9]]))
    torch.testing.assert_close(table.select(torch.tensor([9, 2])), torch.tensor([[0.9], [0.2]]))
    assert table.contains(torch.tensor([5, 6])).tolist() == [True, False]


def test_displayed_members__of_all_displayed_groups(planted):
    result = planted[-1]
    (shown,) = displayed_trees(result, 5)
    assert torch.equal(displayed_members(result, 5), shown.members)
    assert displayed_members(result, 0).shape == (0,)


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        ("label", {1: ExampleOutcome(False, ""), 2: ExampleOutcome(True, "-> dog")}),
        ("prediction", {1: ExampleOutcome(False, ""), 3: ExampleOutcome(True, "label: dog")}),
    ],
)
def test_example_outcomes__of_a_label_and_a_prediction_group(grouping, expected):
    ids, labels, predictions = torch.tensor([[1, 2, 3], [0, 0, 1], [0, 1, 0]])
    grades = Grades(ids, labels, predictions, torch.ones(3), ("cat", "dog"))
    assert example_outcomes(grades, GroupReport(grouping, "cat", 2)) == expected


def test_example_outcomes__of_a_cluster_by_its_members():
    ids, labels, predictions = torch.tensor([[1, 2, 3], [0, 0, 1], [0, 1, 0]])
    grades = Grades(ids, labels, predictions, torch.ones(3), ("cat", "dog"))
    found = example_outcomes(grades, GroupReport("cluster", "7", 2), torch.tensor([1, 3]))
    assert found == {1: ExampleOutcome(False, ""), 3: ExampleOutcome(True, "-> cat")}


def test_example_outcomes__of_a_pair():
    ids, labels, predictions = torch.tensor([[1, 2, 3, 4], [0, 0, 1, 0], [0, 1, 0, 1]])
    grades = Grades(ids, labels, predictions, torch.ones(4), ("cat", "dog"))
    wrong = ExampleOutcome(True, "-> dog")
    found = example_outcomes(grades, GroupReport("pair", "cat -> dog", 3), torch.tensor([1, 2, 4]))
    assert found == {1: ExampleOutcome(False, ""), 2: wrong, 4: wrong}


def test_with_examples_among__lists_the_extremes_of_those_that_were_kept(planted):
    _images, _bar, _encoder, grades, *_, result = planted
    kept = set(grades.ids[::7].tolist())
    shown = with_examples_among(result, grades, kept)
    assert any(entry.hardest_ids for entry in result.report.classes)
    for before, after in zip(result.report.classes, shown.report.classes, strict=True):
        rows = [
            row
            for row in range(len(grades))
            if grades.class_names[grades.labels[row]] == before.name and int(grades.ids[row]) in kept
        ]
        if before.hardest_ids:
            ordered = sorted(rows, key=lambda row: float(result.directions.out_of_fold[row]))
            ids = [int(grades.ids[row]) for row in ordered]
            assert list(after.hardest_ids) == ids[: len(before.hardest_ids)]
            assert list(after.easiest_ids) == ids[::-1][: len(before.easiest_ids)]
        assert set(after.least_confident_ids) <= kept
        assert (after.name, after.accuracy, after.cv_score) == (before.name, before.accuracy, before.cv_score)


def test_kept_images__are_in_the_unit_range():
    kept = {7: torch.full((3, 2, 2), 255, dtype=torch.uint8), 8: torch.zeros(1, 2, 3, dtype=torch.uint8)}
    first, second = kept_images(kept, [8, 7])
    assert first.shape == (1, 2, 3)
    assert bool((second == 1).all())
