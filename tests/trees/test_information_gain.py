import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.trees.information_gain import fold_gains, information_gain


def _reference_information_gain(feature, failed, min_leaf=1):
    if failed.all() or not failed.any():
        return 0.0
    weights = {0: 1.0, 1: (~failed).sum() / failed.sum()}
    tree = (
        DecisionTreeClassifier(criterion="entropy", max_depth=1, class_weight=weights, min_samples_leaf=min_leaf)
        .fit(feature[:, None], failed.astype(int))
        .tree_
    )
    if tree.node_count == 1:
        return 0.0
    weight, impurity = tree.weighted_n_node_samples, tree.impurity
    return impurity[0] - (weight[1] * impurity[1] + weight[2] * impurity[2]) / weight[0]


@pytest.mark.parametrize("levels", [None, 3, 12], ids=["continuous", "3 values", "12 values"])
@pytest.mark.parametrize("n", [30, 301])
def test_information_gain__equals_a_depth_1_tree(levels, n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 35)) if levels is None else rng.integers(0, levels, size=(n, 35)) / 7
    x[:, 3] = 0.1
    x[:, 4] = -np.abs(x[:, 4]) * 0.0  # zeros of both signs are one value
    x[: n // 2, 4] = 0.0
    x[:, 5] *= 1e-7  # some differences are too small for a split
    failed = rng.random(n) < 1 / (1 + np.exp(2 - x[:, 0]))
    for min_leaf in (1, 7):
        expected = [_reference_information_gain(column, failed, min_leaf) for column in x.astype(np.float32).T]
        gains = information_gain(x, failed, min_leaf=min_leaf)
        np.testing.assert_allclose(np.delete(gains, 5), np.delete(expected, 5), atol=1e-12)
        assert gains[5] <= expected[5] + 1e-12  # older releases of scikit-learn split there all the same
    assert information_gain(x, failed)[3] == 0


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(0, 2)), min_size=1, max_size=60),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_fold_gains__equal_those_of_the_examples_outside_the_fold(rows, min_leaf):
    values, failed, fold = (np.array(column) for column in zip(*rows, strict=True))
    x = np.stack([values, -values, np.zeros(len(rows))], axis=1).astype(np.float32)
    found = fold_gains(x, failed, fold, [min_leaf] * 4)
    for gain, kept in zip(found, [fold >= 0, fold != 0, fold != 1, fold != 2], strict=True):
        expected = information_gain(x[kept], failed[kept], min_leaf=min_leaf) if failed.any() and kept.any() else 0
        np.testing.assert_allclose(gain, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["continuous", "tied"])
def test_fold_gains__the_same_with_and_without_tables(kind, monkeypatch):
    """Many examples make the tables too large; the other way must not differ in a single bit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 100)).astype(np.float32)
    x = x.round(1) if kind == "tied" else x
    gains = importlib.import_module("lightning_failures.trees.information_gain")  # the face has a function so named
    failed, fold = rng.random(300) < 0.3, rng.integers(0, 5, 300)
    with monkeypatch.context() as patch:
        patch.setattr(gains, "_cut_by_cut", None)
        looked_up = fold_gains(x, failed, fold, [20] * 6)
    monkeypatch.setattr(gains, "_MAX_CELLS", 0)
    assert np.array_equal(fold_gains(x, failed, fold, [20] * 6), looked_up)
    assert looked_up.min() > 0


def test_information_gain__min_leaf_and_degenerate_labels():
    x = np.arange(10.0)[:, None]
    failed = np.arange(10) == 9
    assert information_gain(x, failed).tolist() == [1.0]
    assert information_gain(x, failed, min_leaf=3)[0] < 0.6
    assert information_gain(x, failed, min_leaf=6).tolist() == [0.0]
    assert information_gain(x, np.zeros(10, dtype=bool)).tolist() == [0.0]
    assert information_gain(x, np.ones(10, dtype=bool)).tolist() == [0.0]
    assert information_gain(np.zeros((3, 0)), [True, False, True]).tolist() == []
    assert information_gain(np.zeros((0, 3)), []).tolist() == [0.0] * 3
    assert information_gain(np.zeros((1, 3)), [True]).tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_information_gain__any_layout_and_nothing_is_changed(dtype):
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(90, 37)).astype(dtype)
    failed = rng.random(90) < 0.4
    expected = information_gain(plain.copy(), failed)
    spread = np.zeros((180, 74), dtype=dtype)
    spread[::2, ::2] = plain
    for given_ in (np.asfortranarray(plain), spread[::2, ::2], plain):
        given_.setflags(write=False)
        assert np.array_equal(information_gain(given_, failed), expected)
        assert given_.tobytes() == plain.tobytes()
