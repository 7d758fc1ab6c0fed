"""The work of one process of a pool."""

import pytest
import torch

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools.job import _class_labels, writing


def test_writing__a_full_disk_names_the_remedy(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be written \(full\).*resume"), writing(tmp_path):
        raise OSError("full")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (torch.tensor([2, 0]), None),
        (torch.tensor([[2], [0]]), None),
        (torch.tensor([2.0, 0.0]), None),
        (torch.tensor([[0, 0, 1], [1, 0, 0]]), "multiclass"),
    ],
)
def test_class_labels__forms(labels, task):
    found = _class_labels(labels, task)
    assert found.tolist() == [2, 0]
    assert found.dtype == torch.int64


@pytest.mark.parametrize("labels", [torch.tensor([0.5]), torch.tensor([-1]), torch.tensor([[0, 1]])])
def test_class_labels__refused(labels):
    with pytest.raises(DataError, match="one class for each example"):
        _class_labels(labels, None)
