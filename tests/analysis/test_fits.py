"""Aggregates of the built-in methods, and their contribution to a result."""

import math

import pytest
import torch

from lightning_failures.analysis.fits import DirectionsFit, TreesFit, defined_numbers, mean_of
from lightning_failures.analysis.method import FitTask
from lightning_failures.data.members import RowValues
from lightning_failures.data.partition import SINGLE_PROCESS, Partition
from tests.analysis.test_analyse import planted


@pytest.fixture(scope="module")
def task():
    grades, x = planted()
    partition = Partition.of(grades, None, SINGLE_PROCESS)
    return FitTask(grades, RowValues.of(x, grades, partition.rows, "embeddings"), partition)


def test_mean_of():
    assert mean_of(torch.tensor([True, False])) == 0.5
    assert mean_of(torch.empty(0)) is None


def test_defined_numbers():
    assert defined_numbers({"a": 0.0, "b": None, "c": math.nan, "d": math.inf}) == {"a": 0.0}


def test_directions_fit__summary_by_definition(task):
    found = DirectionsFit(permutations=99).fit(task)
    assert found.summary["cv_score_mean"] == pytest.approx(found.fitted.cv_score.double().mean().item())
    assert found.summary["flagged_fraction"] == pytest.approx((found.fitted.out_of_fold < 0).double().mean().item())
    assert found.groups == ()


def test_trees_fit__one_tree_per_group(task):
    found = TreesFit().fit(task)
    keys = {(group.grouping, group.class_name) for group in found.groups}
    assert keys == {(grouping, name) for grouping in ("label", "prediction") for name in task.grades.class_names}
    assert set(found.fitted) == keys
