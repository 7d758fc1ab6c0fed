"""The whole tree in the report: every node with its counts, and an interval like that of a leaf."""

import math

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.trees import fit_failure_tree
from lightning_failures.trees.cross_validation import fillable_folds


def graded(failed):
    ids, labels = torch.arange(len(failed)), torch.zeros(len(failed), dtype=torch.int64)
    return Grades(ids, labels, torch.from_numpy(np.asarray(failed)).long(), torch.ones(len(failed)), ("cat", "dog"))


@pytest.fixture(scope="module")
def tiny():
    """Of 40 + 30 + 30 examples 4, 2 and 25 fail; feature 1 separates the last part, feature 0 the first two."""
    x = np.repeat([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], [40, 30, 30], axis=0)
    failed = np.concatenate([np.arange(40) < 4, np.arange(30) < 2, np.arange(30) < 25])
    return analyse(graded(failed), features=x).groups[0]


def test_nodes__a_tree_by_hand(tiny):
    assert [(n.size, n.failures, n.parent, n.above, n.feature, n.threshold) for n in tiny.nodes] == [
        (100, 31, None, None, 1, 0.5),
        (70, 6, 0, False, 0, 0.5),
        (40, 4, 1, False, None, None),
        (30, 2, 1, True, None, None),
        (30, 25, 0, True, None, None),
    ]
    assert [n.error_rate for n in tiny.nodes] == [0.31, 6 / 70, 0.1, 2 / 30, 25 / 30]
    assert [n.error_coverage for n in tiny.nodes] == [1.0, 6 / 31, 4 / 31, 2 / 31, 25 / 31]


def test_nodes__leaves_are_those_of_the_report(tiny):
    leaves = [node for node in tiny.nodes if node.leaf is not None]
    assert sorted(node.leaf for node in leaves) == [0, 1, 2]
    for node in leaves:
        leaf = tiny.leaves[node.leaf]
        assert (node.size, node.error_rate, node.error_coverage, node.interval) == (
            *(leaf.size, leaf.error_rate, leaf.error_coverage, leaf.interval),
        )
        assert (node.heldout_error_rate, node.heldout_error_coverage) == (
            *(leaf.heldout_error_rate, leaf.heldout_error_coverage),
        )
    assert (tiny.nodes[0].heldout_error_rate, tiny.nodes[0].heldout_error_coverage) == (0.31, 1.0)


def test_leaves__report_validity_in_sample_and_held_out():
    x, failed = np.random.default_rng(1).normal(size=(150, 30)), np.random.default_rng(2).random(150) < 0.3
    noise = analyse(graded(failed), features=x).groups[0]
    assert not noise.pattern
    assert (noise.leaves[0].valid, noise.leaves[0].heldout_valid) == (True, False)
    low, high = noise.leaves[0].interval
    assert low <= noise.leaves[0].heldout_error_rate <= high
    x[:, 0] += 3 * failed
    planted = analyse(graded(failed), features=x).groups[0]
    assert planted.pattern
    assert (planted.leaves[0].valid, planted.leaves[0].heldout_valid) == (True, True)
    assert all(leaf.gain is None for leaf in noise.leaves)  # a tree without a pattern
    first, *others = planted.leaves
    rest = sum(leaf.heldout_error_rate * leaf.size for leaf in others) / sum(leaf.size for leaf in others)
    assert first.gain == pytest.approx((first.heldout_error_rate - rest) * first.size)
    assert min(planted.leaves, key=lambda leaf: leaf.rank) is first
    assert min(leaf.gain for leaf in planted.leaves) == 0


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 12)).astype(np.float32)
    failed = rng.random(400) < np.where(x[:, 2] > 0.5, 0.7, 0.2)
    sources = np.arange(400) // 2
    return x, failed, sources, fit_failure_tree(x, failed, groups=sources, seed=5)


def test_nodes__counts_add_up(noisy):
    x, failed, _, _ = noisy
    group = analyse(graded(failed), features=x).groups[0]
    root = group.nodes[0]
    assert (root.size, root.error_rate, root.error_coverage) == (group.size, group.base_error_rate, 1.0)
    for i, node in enumerate(group.nodes):
        assert (node.feature is None) == (node.leaf is not None)
        children = [child for child in group.nodes if child.parent == i]
        assert all(child.size and (node.parent is None or node.parent < i) for child in children)
        assert [child.above for child in children] == ([] if node.feature is None else [False, True])
        if children:
            assert sum(child.size for child in children) == node.size
            assert sum(child.failures for child in children) == node.failures
        low, high = node.interval
        assert 0 <= low < high <= 1


def _rate_by_definition(members, failed, sources, fold, leaf_without):
    """The docstrings of ``Leaf.interval`` and ``score_held_out`` in loops: one held-out weight an example."""
    weight = np.zeros(len(failed))
    for k, there in enumerate(leaf_without):
        for leaf in np.unique(there):
            held = (fold == k) & (there == leaf)
            if held.any():
                weight[held] = ((fold != k) & (there == leaf) & members).sum() / held.sum()
    rate = (weight * failed).sum() / weight.sum()
    each = [(weight * (failed - rate))[sources == s].sum() for s in np.unique(sources[weight > 0])]
    variance = sum(d * d for d in each) / weight.sum() ** 2 * len(each) / (len(each) - 1)
    n = min(rate * (1 - rate) / variance / 1.5, members.sum())
    return rate, wilson_interval(rate * n, n)


def test_intervals__of_every_node_by_definition(noisy):
    x, failed, sources, tree = noisy
    fold = fillable_folds(failed, sources, 5, 5)
    without = [fit_failure_tree(x[fold != k], failed[fold != k], seed=5).apply(x).numpy() for k in range(5)]
    leaf = tree.apply(x).numpy()
    nodes = tree.nodes
    assert len(nodes.leaf) > 7
    for i, (below, found) in enumerate(zip(nodes.leaves_below(), tree.intervals, strict=True)):
        rate, expected = _rate_by_definition(below[leaf], failed, sources, fold, without)
        assert found == pytest.approx(expected, rel=1e-9)
        assert tree.heldout_error_rates[i] == pytest.approx(rate if i else failed.mean(), rel=1e-9)
    assert [tree.leaves[i].interval for i in nodes.leaf[nodes.leaf >= 0]] == [
        interval for interval, i in zip(tree.intervals, nodes.leaf, strict=True) if i >= 0
    ]


@pytest.mark.parametrize(
    ("failed", "constant", "reason"),
    [
        (np.zeros(60, dtype=bool), False, "no failures"),
        (np.ones(60, dtype=bool), False, "every example failed"),
        (np.arange(30) % 2 == 0, False, "a split needs at least"),
        (np.arange(60) % 2 == 0, True, "no feature splits the examples"),
    ],
)
def test_nodes__a_single_one_has_its_reason(failed, constant, reason):
    x = np.random.default_rng(0).normal(size=(len(failed), 3)) * (not constant)
    groups = analyse(graded(failed), features=x).groups
    assert reason in groups[0].skipped
    for group in groups:
        assert len(group.nodes) == (1 if group.size else 0)
        assert group.skipped
    (root,) = groups[0].nodes
    assert (root.size, root.failures, root.leaf, root.feature) == (len(failed), int(failed.sum()), 0, None)
    assert root.error_coverage == (None if reason == "no failures" else 1.0)


def test_nodes__of_a_tree_that_cannot_be_held_out_have_no_interval():
    x = np.repeat([0.0, 1.0], 50)[:, None]
    tree = fit_failure_tree(x, x[:, 0] > 0, groups=np.repeat([0, 1], 50))
    assert "single source" in tree.skipped
    assert len(tree.leaves) == 2
    assert tree.intervals == (None, None, None)
    assert math.isnan(tree.p_value)
