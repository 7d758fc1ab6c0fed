import numpy as np
import pytest
import torch

from lightning_failures.core.arrays import as_array, as_mask, as_matrix, as_rows, as_vector, unit_vectors
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
    with pytest.raises(DataError, match="x must be finite; 1 rows are not, the first is row 1"):
        as_matrix([[0.0], [np.nan]], "x")


def test_as_matrix__widens_half_precision():
    assert as_matrix(np.ones((2, 3), dtype=np.float16), "x").dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_as_rows__neither_copies_nor_converts(dtype, tmp_path):
    x = np.arange(12, dtype=dtype).reshape(4, 3)
    x.flags.writeable = False
    np.save(tmp_path / "x.npy", x)
    for values in (x, x[::2], x[:, ::-1], x.T, np.load(tmp_path / "x.npy", mmap_mode="r")):
        rows = as_rows(values, "x")
        assert rows.dtype == dtype
        assert np.shares_memory(rows, values)
        assert np.array_equal(rows, values)
    tensor = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    assert np.shares_memory(as_rows(tensor, "x"), tensor.detach().numpy())


def test_as_rows__what_numpy_lacks_is_widened():
    assert as_rows(torch.ones(2, 3, dtype=torch.bfloat16), "x").dtype == np.float32
    assert as_rows([[1, 2]], "x").dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_as_rows__finds_what_is_not_finite_in_any_block(dtype, value, monkeypatch):
    monkeypatch.setattr("lightning_failures.core.arrays._CELLS_AT_ONCE", 8)
    x = np.full((11, 4), np.finfo(dtype).max, dtype=dtype)
    as_rows(x, "x")
    x[[5, 10], [0, 3]] = value
    with pytest.raises(DataError, match="x must be finite; 2 rows are not, the first is row 5"):
        as_rows(x, "x")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_as_rows__empty(shape, dtype):
    assert as_rows(np.empty(shape, dtype=dtype), "x").shape == shape


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_vectors__arrays_and_tensors(dtype):
    x = (np.random.default_rng(0).normal(size=(6, 4, 5)) * 100).astype(dtype)
    x[2, 1] = 0
    before = x.copy()
    expected = np.linalg.norm(x, axis=-1) > 0
    for unit in (unit_vectors(x), unit_vectors(torch.from_numpy(x)).numpy()):
        assert unit.dtype == dtype
        assert np.allclose(np.linalg.norm(unit, axis=-1), expected)
        assert np.allclose(unit * np.linalg.norm(x, axis=-1, keepdims=True), x, atol=1e-4)
    assert np.array_equal(x, before)


def test_unit_vectors__tensors_agree_with_torch_bit_for_bit():
    x = torch.randn(50, 130, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit_vectors(x), torch.nn.functional.normalize(x, dim=-1))


def test_unit_vectors__empty_and_single():
    assert unit_vectors(np.empty((0, 3))).shape == (0, 3)
    assert unit_vectors(torch.empty(0, 3)).shape == (0, 3)
    assert unit_vectors(np.array([0.0, -2.0])).tolist() == [0.0, -1.0]
