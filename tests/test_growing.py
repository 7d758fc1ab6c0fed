import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.growing import Split, information_gain, least_leaf, rule


def _reference_information_gain(feature, failed):
    weights = {0: 1.0, 1: (~failed).sum() / failed.sum()}
    tree = (
        DecisionTreeClassifier(criterion="entropy", max_depth=1, class_weight=weights)
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
    x = rng.normal(size=(n, 15)) if levels is None else rng.integers(0, levels, size=(n, 15)) / 7
    x[:, 3] = 0.1
    x[:, 4] = -np.abs(x[:, 4]) * 0.0  # zeros of both signs are one value
    x[: n // 2, 4] = 0.0
    failed = rng.random(n) < 1 / (1 + np.exp(2 - x[:, 0]))
    expected = [_reference_information_gain(column, failed) for column in x.astype(np.float32).T]
    np.testing.assert_allclose(information_gain(x, failed), expected, atol=1e-12)
    assert information_gain(x, failed)[3] == 0


def test_information_gain__min_leaf_and_degenerate_labels():
    x = np.arange(10.0)[:, None]
    failed = np.arange(10) == 9
    assert information_gain(x, failed).tolist() == [1.0]
    assert information_gain(x, failed, min_leaf=3)[0] < 0.6
    assert information_gain(x, failed, min_leaf=6).tolist() == [0.0]
    assert information_gain(x, np.zeros(10, dtype=bool)).tolist() == [0.0]
    assert information_gain(x, np.ones(10, dtype=bool)).tolist() == [0.0]
    assert information_gain(np.zeros((3, 0)), [True, False, True]).tolist() == []


def test_least_leaf__two_percent_but_not_below_twenty():
    assert [least_leaf(n, None) for n in (10, 1000, 1001, 5000)] == [20, 20, 21, 100]
    assert least_leaf(5000, 3) == 3


def test_rule__one_condition_a_feature():
    assert rule(()) == "all examples"
    assert rule((Split(17, 0.36, False), Split(3, 1.2, True))) == "feature 17 <= 0.36 and feature 3 > 1.2"
    assert rule((Split(1, 0.5, False), Split(1, 0.1, True), Split(1, 0.4, False))) == "0.1 < feature 1 <= 0.4"
