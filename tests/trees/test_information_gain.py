import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.stats.kernels.gain import pack, pack_halves, unpack, unpack_half
from lightning_failures.stats.kernels.top_gains import raise_best
from lightning_failures.trees.information_gain import best_features, fold_gains, information_gain


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


def _drawn(kind, n, width, rng):
    """Return features of a kind of distribution, the last one informative."""
    x = rng.normal(size=(n, width))
    if kind == "heavy tails":
        x = rng.standard_cauchy(size=(n, width))
    elif kind == "tied":
        x = x.round(1)
    elif kind == "zeros":
        x = np.maximum(x, 0)
    elif kind == "near one value":
        x = 5 + 1e-6 * x
    elif kind == "extreme":
        x *= 10.0 ** rng.uniform(-44, 38, size=width)
    failed = rng.random(n) < np.where(x[:, -1] > np.quantile(x[:, -1], 0.8), 0.5, 0.2)
    return x.astype(np.float16 if kind == "half" else np.float32), failed


KINDS = ["normal", "heavy tails", "tied", "zeros", "near one value", "extreme", "half"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [65, 400])
def test_best_features__those_of_all_gains(kind, n):
    rng = np.random.default_rng(n)
    x, failed = _drawn(kind, n, 150, rng)
    fold = rng.integers(0, 5, n)
    min_leaf = [20, 20, 5, 20, 1, 20]
    for failing in (failed, failed & (fold != 2), np.arange(n) == 3):
        gains = fold_gains(x, failing, fold, min_leaf)
        found = best_features(x, failing, fold, min_leaf, 20)
        for k, chosen in enumerate(found):
            if not failing[fold != k - 1].any():
                assert len(chosen) == 0
            else:
                np.testing.assert_array_equal(chosen, np.argsort(-gains[k], kind="stable")[:20])


@pytest.mark.parametrize("kind", ["normal", "zeros", "half"])
def test_raise_best__passes_few_examples(kind):
    rng = np.random.default_rng(7)
    module = importlib.import_module("lightning_failures.trees.information_gain")  # the face has a function so named
    x, failed = _drawn(kind, 700, 300, rng)
    problem = module._Problem.of(failed, rng.integers(0, 5, 700), [20] * 6)
    gains, best, passed = np.full((6, 20), -1.0), np.zeros((6, 20), dtype=np.int64), 0
    subsets = problem.member, problem.n_failed, problem.n_correct, problem.min_leaf
    for first, keys in problem._sorted(x):
        passed += raise_best(keys, first, problem._block_ends(), *subsets, module._logs(700), gains, best)
    assert 0 < passed < 0.1 * x.size * 6
    np.testing.assert_array_equal(gains, np.sort(problem.gains(x), axis=1)[:, :-21:-1])


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 2)), min_size=4, max_size=60),
    st.integers(1, 6),
    st.sampled_from([np.float16, np.float32]),
)
@settings(deadline=None)
def test_best_features__ties_across_the_ends_of_blocks(rows, min_leaf, dtype):
    values, failed, fold = (np.array(column) for column in zip(*rows, strict=True))
    shifted = [np.roll(values, k) * 2.0**-24 * 2.0 ** (12 * (k % 3)) for k in range(8)]
    x = np.stack([*shifted, *shifted[:2], np.zeros(len(rows)), failed], axis=1).astype(dtype)
    gains = fold_gains(x, failed, fold, [min_leaf] * 4)
    for k, chosen in enumerate(best_features(x, failed, fold, [min_leaf] * 4, 5)):
        outside = failed[fold != k - 1]
        expected = np.argsort(-gains[k], kind="stable")[:5] if 0 < outside.sum() < len(outside) else []
        np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("half", [True, False])
def test_pack__keys_sort_and_give_back_values_and_codes(half):
    rng = np.random.default_rng(3)
    extremes = np.array([0.0, -0.0, 6e-8, -6e-8, 1e-7, 6.1e-5, -6.2e-5, 1.0, -65504.0, 65504.0] * 2, dtype=np.float16)
    x = np.stack([rng.permutation(extremes) for _ in range(3)], axis=1)
    code = np.arange(len(x))
    keys = np.empty((2, len(x)), dtype=np.uint32 if half else np.int64)
    if half:
        pack_halves(x.view(np.uint16), 1, code, keys)
    else:
        pack(x.astype(np.float32), np.array([1, 2]), code, keys)
    keys.sort(axis=1)
    for column, row in zip(x.T[1:].astype(np.float32), keys, strict=True):
        found = [unpack_half(key) if half else unpack(key) for key in row]
        assert found == np.sort(column).tolist()
        order = (row & (0xFFFF if half else 0xFFFFFFFF)).astype(np.int64)
        np.testing.assert_array_equal(column[order], found)
        assert sorted(order) == code.tolist()


def test_best_features__many_examples_in_one_block():
    """Counts above 65,535 do not overflow."""
    rng = np.random.default_rng(0)
    x = np.zeros((70_000, 64), dtype=np.float32)
    x[:200] = rng.normal(size=(200, 64))
    failed = (np.arange(len(x)) < 200) & (x[:, 9] > 0)
    failed[1000:1010] = True
    gains = fold_gains(x, failed, None, [1])[0]
    np.testing.assert_array_equal(best_features(x, failed, None, [1], 5)[0], np.argsort(-gains, kind="stable")[:5])
    assert gains.argmax() == 9


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
