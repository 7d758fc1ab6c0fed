import numpy as np
import pytest
import torch

from lightning_failures.arrays import as_array, as_mask, as_matrix, as_vector
from lightning_failures.errors import DataError


def test_as_array__does_not_copy_what_need_not_be():
    x = torch.zeros(3)
    assert np.shares_memory(as_array(x), x.numpy())
    array = np.zeros(3)
    assert as_array(array) is array


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_as_array__widens_half_precision(dtype):
    assert as_array(torch.ones(2, dtype=dtype)).dtype == np.float32


def test_as_matrix__integers_and_errors():
    assert as_matrix([[1, 2]], "x").dtype == np.float32
    with pytest.raises(DataError, match="must hold numbers"):
        as_matrix([["a"]], "x")
    with pytest.raises(DataError, match="1 rows that are not finite, first row 1"):
        as_matrix([[0.0], [np.nan]], "x")


def test_as_vector__whole_floats_and_names():
    assert as_vector([1.0, 2.0], "ids", 2).dtype == np.int64
    assert as_vector(["a", "b"], "ids", 2).tolist() == ["a", "b"]
    assert as_vector([], "ids", 0).tolist() == []
    with pytest.raises(DataError, match="integers"):
        as_vector([0.5], "ids", 1)


def test_as_mask__numbers_that_are_not_boolean():
    assert as_mask([0, 1], "correct", 2).tolist() == [False, True]
    with pytest.raises(DataError, match="boolean"):
        as_mask([0, 2], "correct", 2)
    with pytest.raises(DataError, match="shape"):
        as_mask([True], "correct", 2)
