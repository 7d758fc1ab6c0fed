import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.trees.growing import NodeSplit, grow_trees, min_leaf_size, rule_text


def _gain(failed, left, weight):
    """Return the information gain of a split of a node, in bits."""

    def entropy(mask):
        share = weight * failed[mask].sum() / (weight * failed[mask].sum() + (~failed[mask]).sum())
        return -sum(p * np.log2(p) for p in (share, 1 - share) if p)

    total = np.where(failed, weight, 1.0)
    shares = [total[side].sum() / total.sum() for side in (left, ~left)]
    return entropy(np.ones_like(left)) - sum(s * entropy(side) for s, side in zip(shares, (left, ~left), strict=True))


def _assert_same(nodes, tree, x, failed, rows, weight, node=0, other=0):
    """Compare two trees from the root down; where the splits differ, the gains are equal."""
    is_leaf = nodes.feature[node] < 0
    if is_leaf and len(set(failed[rows])) == 1:  # scikit-learn splits some pure nodes: of rounding
        return int(tree.children_left[other] >= 0)
    assert is_leaf == (tree.children_left[other] < 0)
    if is_leaf:
        return 0
    feature, threshold = nodes.feature[node], nodes.threshold[node]
    left = x[rows, feature] <= threshold
    if (feature, threshold) != (tree.feature[other], tree.threshold[other]):
        its_left = x[rows, tree.feature[other]] <= tree.threshold[other]
        gains = [_gain(failed[rows], side, weight) for side in (left, its_left)]
        assert gains[0] == pytest.approx(gains[1], abs=1e-12)
        rank = (feature, threshold), (tree.feature[other], tree.threshold[other])
        assert rank[0] < rank[1]  # the best feature, then the lowest threshold
        return 1
    children = (nodes.left[node], tree.children_left[other]), (nodes.right[node], tree.children_right[other])
    return sum(
        _assert_same(nodes, tree, x, failed, rows[side], weight, *pair)
        for side, pair in zip((left, ~left), children, strict=True)
    )


@pytest.mark.parametrize("levels", [None, 4, 30], ids=["continuous", "4 values", "30 values"])
def test_grow_trees__equal_those_of_scikit_learn_but_for_ties(levels):
    ties = grown = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.choice([12, 60, 300, 900]))
        x = rng.normal(size=(n, 12)) if levels is None else rng.integers(0, levels, size=(n, 12)) / 7
        x = x.astype(np.float32)
        x[:, 11] = 1.0
        failed = rng.random(n) < 1 / (1 + np.exp(1 - 2 * x[:, 3] - x[:, 5]))
        failed[:2] = True, False
        depth, least = int(rng.integers(1, 6)), int(rng.choice([1, 3, 20]))
        fold = rng.integers(0, 3, n)
        fold[:2] = 0
        features = [np.arange(12)] + [np.arange(12) if k else np.zeros(0, dtype=int) for k in range(3)]
        trees = grow_trees(x, failed, fold, features, max_depth=depth, min_leaf=least)
        assert trees[1].feature.tolist() == [-1]
        for k, nodes in enumerate(trees):
            rows = np.arange(n) if k == 0 else np.flatnonzero(fold != k - 1)
            if k == 1:
                continue
            weight = (~failed[rows]).sum() / failed[rows].sum()
            peer = DecisionTreeClassifier(criterion="entropy", max_depth=depth, min_samples_leaf=least, random_state=0)
            tree = peer.fit(x[rows], failed[rows], sample_weight=np.where(failed[rows], weight, 1.0)).tree_
            differing = _assert_same(nodes, tree, x, failed, rows, weight)
            ties += differing
            grown += 1
            if not differing:
                np.testing.assert_array_equal(nodes.left, tree.children_left)
                np.testing.assert_array_equal(nodes.right, tree.children_right)
                assert nodes.depth.max() == tree.max_depth
                assert nodes.leaf.max() == tree.n_leaves - 1
    assert ties < 0.7 * grown  # small nodes have many


def test_grow_trees__ties_go_to_the_best_feature_and_the_lowest_threshold():
    failed = np.array([True, False, False, True])
    x = np.array([[0, 3], [1, 2], [2, 1], [3, 0]], dtype=np.float32)
    (nodes,) = grow_trees(x, failed, None, [np.array([1, 0])], max_depth=1, min_leaf=1)
    assert (nodes.feature[0], nodes.threshold[0]) == (1, 0.5)


def test_grow_trees__a_threshold_that_rounds_up_is_the_lower_value():
    low = np.float32(1.0)
    x = np.array([[low], [np.nextafter(low, np.float32(2))], [2.0], [3.0]], dtype=np.float32)
    x[1] += np.float32(1.2e-7)
    (nodes,) = grow_trees(x, np.array([True, False, False, False]), None, [np.array([0])], max_depth=1, min_leaf=1)
    assert x[0, 0] <= nodes.threshold[0] < x[1, 0]


def test_least_leaf__two_percent_but_not_below_twenty():
    assert [min_leaf_size(n, None) for n in (10, 1000, 1001, 5000)] == [20, 20, 21, 100]
    assert min_leaf_size(5000, 3) == 3


def test_rule__one_condition_a_feature():
    assert rule_text(()) == "all examples"
    assert rule_text((NodeSplit(17, 0.36, False), NodeSplit(3, 1.2, True))) == "feature 17 <= 0.36 and feature 3 > 1.2"
    assert (
        rule_text((NodeSplit(1, 0.5, False), NodeSplit(1, 0.1, True), NodeSplit(1, 0.4, False)))
        == "0.1 < feature 1 <= 0.4"
    )
