"""The classes of training examples."""

from __future__ import annotations

import pytest
import torch

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.base import LEFT_OUT
from lightning_failures.trainer.reading_ways import class_labels, condition_labels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([2, 0, -100]), [2, 0, -100]),
        (torch.tensor([[1], [0]], dtype=torch.uint8), [1, 0]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.tensor([0.95, 0.05, 1.0, 0.0]), [1, 0, 1, 0]),  # smoothed
        (torch.tensor([[0.95], [-1.0]], dtype=torch.float64), [1, -1]),  # beside an unknown one
        (torch.tensor([0.5, 3.0], dtype=torch.float16), [0, 3]),
        (torch.tensor([1.5, float("nan"), float("inf"), 2.0]), [LEFT_OUT, LEFT_OUT, LEFT_OUT, 2]),
        (torch.tensor([[0.9, 0.1], [0.0, 1.0]]), [0, 1]),
    ],
)
def test_class_labels__of_all_forms(labels, expected):
    found = class_labels(labels)
    assert (found.dtype, found.tolist()) == (torch.int64, expected)
    assert found.data_ptr() != labels.data_ptr()


def test_class_labels__of_several_conditions_are_an_error():
    with pytest.raises(ConfigurationError, match=r"\(2, 3\) are not one-hot"):
        class_labels(torch.ones(2, 3))
    with pytest.raises(ConfigurationError, match=r"\(2, 3, 1\)"):
        class_labels(torch.ones(2, 3, 1))


@pytest.mark.parametrize("unknown", [-1, -100, 255, float("nan"), 3])
def test_condition_labels__of_all_forms(unknown):
    given = torch.tensor([[1.0, 0.0, unknown], [0.9, 0.1, 1.0]])
    assert condition_labels(given).tolist() == [[1, 0, -1], [1, 0, 1]]
    assert condition_labels(torch.tensor([[True, False]])).tolist() == [[1, 0]]
    with pytest.raises(ConfigurationError, match=r"conditions \(B, K\)"):
        condition_labels(torch.ones(3))
