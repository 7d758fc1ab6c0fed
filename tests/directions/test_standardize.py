import importlib

import numpy as np
import pytest

from lightning_failures.directions.standardize import mean_and_std, standardize


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [2, 3, 1000])
def test_mean_and_std__equal_numpy_whatever_the_blocks(dtype, rows, monkeypatch):
    x = (np.random.default_rng(0).normal(size=(rows, 7)) * 3 + np.arange(7)).astype(dtype)
    for cells in (14, 1 << 20):
        module = importlib.import_module("lightning_failures.directions.standardize")  # not the function
        monkeypatch.setattr(module, "_CELLS_AT_ONCE", cells)
        mean, std = mean_and_std(x)
        np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(std, x.astype(np.float64).std(0, ddof=1), rtol=1e-5)


def test_mean_and_std__far_from_the_origin():
    x = (1000 + np.random.default_rng(0).normal(size=(5000, 4))).astype(np.float32)
    mean, std = mean_and_std(x)
    np.testing.assert_allclose(std, x.astype(np.float64).std(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_and_std__a_constant_dimension_has_none(value, dtype):
    x = np.random.default_rng(0).normal(size=(999, 3)).astype(dtype)
    x[:, 1] = value
    _, std = mean_and_std(x)
    assert std[1] == 0
    assert (std[[0, 2]] > 0.9).all()


def test_mean_and_std__of_one_row_and_of_none():
    mean, std = mean_and_std(np.array([[3.0, 4.0]]))
    assert mean.tolist() == [3, 4]
    assert std.tolist() == [0, 0]
    mean, std = mean_and_std(np.zeros((0, 2)))
    assert mean.tolist() == std.tolist() == [0, 0]


def test_mean_and_std__order_decides_the_last_bit_only():
    x = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    order = np.random.default_rng(1).permutation(500)
    inverse = np.argsort(order)
    one, other = mean_and_std(x, np.arange(500)), mean_and_std(x[order], inverse)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_phi__has_unit_length_and_leaves_its_input_alone():
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float16)
    x[3] = x[3].mean()
    before = x.copy()
    x.setflags(write=False)
    mean, std = np.full(6, x[3, 0], dtype=np.float32), np.ones(6, dtype=np.float32)
    z = standardize(x, mean, std)
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.delete(z, 3, axis=0), axis=1), 1, rtol=1e-6)
    assert (z[3] == 0).all()  # nothing is left of it
    assert np.array_equal(x, before)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e37, 1e-37, 1e18, 1e-18])
def test_phi__does_not_depend_on_the_scale(scale):
    rows = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    rows[:, 1] = 3.0
    mean, std = mean_and_std(rows)
    scaled = rows * np.float32(scale)
    scaled_mean, scaled_std = mean_and_std(scaled)
    assert scaled_std == pytest.approx(std * scale, rel=1e-5)
    assert scaled_std[1] == 0
    expected = standardize(rows, mean.astype(np.float32), std.astype(np.float32))
    found = standardize(scaled, scaled_mean.astype(np.float32), scaled_std.astype(np.float32))
    assert found == pytest.approx(expected, abs=1e-5)
    unit = standardize(scaled, np.zeros(5, np.float32), np.ones(5, np.float32))  # without whitening
    assert unit == pytest.approx(rows / np.linalg.norm(rows, axis=1, keepdims=True), abs=1e-5)


def test_mean_and_std__one_dimension_out_of_range_beside_others():
    rows = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    mean, std = mean_and_std(rows)
    far_mean, far_std = mean_and_std(rows * np.array([1, 1e-25, 1e25], np.float32))
    assert (far_mean[0], far_std[0]) == (mean[0], std[0])
    assert far_std[1:] == pytest.approx(std[1:] * [1e-25, 1e25], rel=1e-5)
