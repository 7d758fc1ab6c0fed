"""Subsets of each class, and the embeddings of the rows that a process holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import PREDICTION
from lightning_failures.data.members import RowValues, members_of
from lightning_failures.errors import DataError

LABELS = torch.tensor([1, 0, 1, 1, 0])
PREDICTIONS = torch.tensor([1, 1, 0, 1, 0])
IDS = torch.tensor([9, 4, 2, 7, 3])
NAMES = ("cat", "dog", "fox")


def grades(**options) -> Grades:
    return Grades(IDS, LABELS, PREDICTIONS, torch.ones(5), NAMES, **options)


def test_members_of__labels_in_the_order_of_the_rows():
    cat, dog, fox = members_of(grades())
    assert [cat.name, dog.name, fox.name] == list(NAMES)
    assert (cat.rows.tolist(), dog.rows.tolist(), fox.rows.tolist()) == ([1, 4], [0, 2, 3], [])
    assert dog.ids.tolist() == [9, 2, 7]
    assert dog.failed.tolist() == [False, True, False]
    assert dog.sources is None


def test_members_of__predictions():
    assert [one.rows.tolist() for one in members_of(grades(), PREDICTION)] == [[2, 4], [0, 1, 3], []]


def test_members_of__a_sample_only():
    sampled = np.array([True, False, False, True, True])
    assert [one.rows.tolist() for one in members_of(grades(), sampled=sampled)] == [[4], [0, 3], []]


def test_by_id__orders_all_columns():
    dog = members_of(grades(groups=torch.tensor([5, 6, 7, 8, 9])))[1].by_id()
    assert dog.ids.tolist() == [2, 7, 9]
    assert dog.rows.tolist() == [2, 3, 0]
    assert dog.failed.tolist() == [True, False, False]
    assert dog.sources.tolist() == [7, 8, 5]


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_row_values__one_per_held_row(kind):
    values = torch.arange(6.0).reshape(3, 2)
    values = values if kind is torch.Tensor else values.numpy()
    held = np.array([True, False, True, False, True])
    found = RowValues.of(values, grades(), held, "embeddings")
    assert found[np.array([4, 0])].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert found.all().tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_row_values__one_per_distinct_id_ascending():
    repeated = Grades(torch.tensor([7, 3, 7]), LABELS[:3], PREDICTIONS[:3], torch.ones(3), NAMES)
    found = RowValues.of(torch.tensor([[3.0], [7.0]]), repeated, np.ones(3, dtype=bool), "embeddings")
    assert found.all().tolist() == [[7.0], [3.0], [7.0]]
    assert found[np.array([1])].tolist() == [[3.0]]


def test_row_values__another_number_of_rows_is_an_error():
    with pytest.raises(DataError, match="embeddings has 4 rows; grades have 5 rows of 5 examples"):
        RowValues.of(torch.ones(4, 2), grades(), np.ones(5, dtype=bool), "embeddings")
