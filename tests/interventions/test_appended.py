"""The training set with additional sources, as a DataLoader and its workers read it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.appended import AppendedDataset, WeightedIndex, added_index

OWN = [(torch.zeros(2), 0), (torch.ones(2), 1)]
POOL = [(torch.full((2,), 7.0), 5)]


class Batched(list):
    """Reads batches in one call."""

    def __getitems__(self, indices):
        return [("at once", index) for index in indices]


def test_index__of_a_source_reads_its_row():
    data = AppendedDataset(OWN, {3: POOL})
    (index,) = added_index(3, np.array([0]))
    assert len(data) == 2
    assert data[1] is OWN[1]
    assert data[int(index)] is POOL[0]
    assert [item[1] for item in data.__getitems__([0, int(index)])] == [0, 5]


def test_weighted_index__survives_a_worker_and_is_an_integer():
    index = pickle.loads(pickle.dumps(WeightedIndex(1, 2.5)))
    assert (index, index.weight) == (1, 2.5)
    assert AppendedDataset(OWN, {}, weight_key="w")[index][-1] == 2.5


def test_weight_key__mappings_tuples_and_others():
    assert AppendedDataset([{"x": 1}], {}, weight_key="w")[0] == {"x": 1, "w": torch.tensor(1.0)}
    with pytest.raises(ConfigurationError, match="weight_key='w' needs examples that are mappings or tuples, got int"):
        AppendedDataset([1], {}, weight_key="w")[0]


def test_batches__read_at_once_only_if_all_are_of_the_training_set():
    data = AppendedDataset(Batched("ab"), {1: POOL})
    assert data.__getitems__([1, 0]) == [("at once", 1), ("at once", 0)]
    assert data.__getitems__([0, int(added_index(1, np.array([0]))[0])])[0] == "a"


def test_lists_of_indices__cannot_be_joined():
    with pytest.raises(DataError, match="lists of indices"):
        AppendedDataset(OWN, {})[[0, WeightedIndex(1, 2.0)]]


def test_attributes__are_those_of_the_training_set():
    data = AppendedDataset(Batched("ab"), {})
    data.base.classes = ["cat"]
    assert data.classes == ["cat"]
    assert pickle.loads(pickle.dumps(data)).classes == ["cat"]
    with pytest.raises(AttributeError):
        data.nothing  # noqa: B018
