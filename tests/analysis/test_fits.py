"""Aggregates of the built-in methods, and their contribution to a result."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.analysis import analyse
from lightning_failures.analysis.fits import DirectionsFit, TreesFit, defined_numbers, mean_of
from lightning_failures.analysis.method import FitTask
from lightning_failures.core.text import is_failed_fit
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues
from lightning_failures.data.partition import SINGLE_PROCESS, Partition, owned_rows
from lightning_failures.directions import standardize
from lightning_failures.errors import DataError
from tests.analysis.test_analyse import NAMES, planted
from tests.data.test_partition import together


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


@pytest.mark.parametrize("wrong_labels", [True, False])
def test_directions_fit__says_where_failures_look_like_doubtful_labels(wrong_labels):
    """The model errs on wrong labels, or on images that are shifted within their class."""
    rng = np.random.default_rng(0)
    true = np.arange(600) % 3
    odd = rng.random(600) < 0.15
    labels = np.where(odd, (true + 1) % 3, true) if wrong_labels else true
    predictions = true if wrong_labels else np.where(odd, (true + 1) % 3, true)
    x = rng.normal(size=(600, 8)) + 6.0 * np.eye(8)[true] + 6.0 * np.eye(8)[7] * (odd & (not wrong_labels))[:, None]
    grades = Grades(torch.arange(600), torch.tensor(labels), torch.tensor(predictions), None, ("a", "b", "c"))
    partition = Partition.of(grades, None, SINGLE_PROCESS)
    found = DirectionsFit(permutations=99).fit(
        FitTask(grades, RowValues.of(torch.tensor(x), grades, partition.rows, "embeddings"), partition)
    )
    assert [note[:40] for note in found.notes] == ["Most failures look like doubtful labels:"] * wrong_labels
    assert all("Either the labels are wrong, or the failures are a minority" in note for note in found.notes)


def with_a_class_out_of_range(size=1e60):
    """Return the task of which the second class has features and embeddings beyond float32."""
    grades, x = planted()
    x = x.double()
    x[grades.labels == 1] *= size
    partition = Partition.of(grades, None, SINGLE_PROCESS)
    reference = x[grades.labels != 1]
    return FitTask(grades, RowValues.of(x, grades, partition.rows, "embeddings"), partition, reference=reference)


def test_directions_fit__a_class_that_fails_costs_itself(task):
    """Its embeddings lie so far from those of the reference that float32 does not hold them."""
    found = DirectionsFit(permutations=99).fit(with_a_class_out_of_range())
    reason = found.fitted.skipped[1]
    assert reason.startswith("its fit failed: DataError: 150 of its 150 embeddings, up to ")
    assert "too far from the mean for float32 numbers" in reason
    assert found.fitted.classes.tolist() == [0, 2]
    assert not found.fitted.out_of_fold[task.grades.labels != 1].isnan().any()
    with pytest.raises(DataError, match="too far from the mean"):
        DirectionsFit(permutations=99).fit(replace(with_a_class_out_of_range(), raise_class_errors=True))


def test_directions_fit__the_moments_are_out_of_range():
    everything = replace(with_a_class_out_of_range(), reference=None)
    with pytest.raises(DataError, match="range of float32"):
        DirectionsFit(permutations=99).fit(everything)


def test_directions_fit__all_classes_fail(task, monkeypatch):
    def broken(*args, **options):
        raise ArithmeticError("planted")

    monkeypatch.setattr("lightning_failures.directions.one_class.permutation_p_value", broken)
    with pytest.raises(ArithmeticError, match="planted"):
        DirectionsFit(permutations=99).fit(task)


def test_trees_fit__a_group_that_fails_costs_itself(task):
    found = TreesFit().fit(with_a_class_out_of_range())
    failed = {(one.grouping, one.class_name): one.skipped for one in found.groups if is_failed_fit(one.skipped)}
    # dogs are labelled as such, or are errors among those that are predicted to be owls
    assert set(failed) == {("label", "dog"), ("prediction", "dog"), ("prediction", "owl")}
    assert set(failed.values()) == {"its fit failed: DataError: features must lie within the range of float32"}
    assert set(found.fitted) == {("label", "cat"), ("label", "owl"), ("prediction", "cat")}
    whole = {(one.grouping, one.class_name): one for one in TreesFit().fit(task).groups}
    kept = [one for one in found.groups if (one.grouping, one.class_name) == ("label", "cat")]
    assert kept[0].aler == pytest.approx(whole["label", "cat"].aler)
    with pytest.raises(DataError, match="range of float32"):
        TreesFit().fit(replace(with_a_class_out_of_range(), raise_class_errors=True))


def test_trees_fit__all_groups_fail(monkeypatch, task):
    def broken(*args, **options):
        raise ArithmeticError("planted")

    monkeypatch.setattr("lightning_failures.trees.groups.fit_failure_tree", broken)
    with pytest.raises(ArithmeticError, match="planted"):
        TreesFit().fit(task)


def test_centres__are_the_means_of_phi_by_class():
    grades, x = planted()
    grades = Grades(grades.ids, grades.labels, grades.predictions, grades.confidence, (*NAMES, "never seen"))
    found = analyse(grades, x, permutations=0).directions
    phi = standardize(x.double().numpy(), found.mean.double().numpy(), found.std.double().numpy())
    expected = np.stack([phi[grades.labels.numpy() == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(found.centres[:3], expected, atol=1e-5)
    assert found.centres.shape == (4, x.shape[1])
    assert found.centres[3].isnan().all()


def test_centres__are_the_same_in_all_processes():
    grades, x = planted()
    alone = analyse(grades, x, permutations=0).directions.centres

    def share(workers):
        mine = owned_rows(grades, workers.rank, workers.world_size)
        return analyse(grades, x[torch.from_numpy(mine)], permutations=0, workers=workers).directions.centres

    for centres in together(2, share):
        torch.testing.assert_close(centres, alone, atol=1e-6, rtol=0)
