"""Grow a failure tree: select features, fit scikit-learn's decision tree on them, and write its rules as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.feature_selection import mutual_info_classif
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.trees.information_gain import fold_gains

MIN_LEAF = 20
"""Default minimum number of examples in a leaf."""
MIN_LEAF_SHARE = 0.02
"""Default minimum share of the examples in a leaf."""


@dataclass(frozen=True)
class NodeSplit:
    """One condition on the path to a leaf: feature <= threshold, or feature > threshold if ``above``."""

    feature: int
    threshold: float
    above: bool


@dataclass(frozen=True, eq=False)
class Nodes:
    """A tree as flat arrays, one row per node: leaves have feature -1 and a number in ``leaf``, other nodes leaf -1."""

    feature: IntArray
    threshold: FloatArray
    left: IntArray
    right: IntArray
    depth: IntArray
    leaf: IntArray

    def apply(self, features: NDArray[Any]) -> IntArray:
        """Return (n,) the leaf number of each example from its features (n, D)."""
        node = np.zeros(len(features), dtype=np.int64)
        rows = np.arange(len(features))
        for _ in range(int(self.depth.max())):
            feature = self.feature[node]
            value = features[rows, feature].astype(np.float32)  # scikit-learn compares in float32
            child = np.where(value <= self.threshold[node], self.left[node], self.right[node])
            node = np.where(feature >= 0, child, node)
        return self.leaf[node]

    def numbered(self, order: IntArray) -> Nodes:
        """Return the tree with renumbered leaves: leaf ``order[i]`` becomes leaf i."""
        new_number = np.empty_like(order)
        new_number[order] = np.arange(len(order))
        leaf = np.where(self.leaf >= 0, new_number[self.leaf], -1)
        return Nodes(self.feature, self.threshold, self.left, self.right, self.depth, leaf)

    def path(self, leaf: int) -> tuple[NodeSplit, ...]:
        """Return the conditions from the root to a leaf."""
        node = int(np.flatnonzero(self.leaf == leaf)[0])
        splits: list[NodeSplit] = []
        while node:
            parent, above = self.parent(node)
            splits.append(NodeSplit(int(self.feature[parent]), float(self.threshold[parent]), above))
            node = parent
        return tuple(reversed(splits))

    def parent(self, node: int) -> tuple[int, bool]:
        """Return the parent of a node other than the root, and whether the node is its child above the threshold."""
        parent = int(np.flatnonzero((self.left == node) | (self.right == node))[0])
        return parent, bool(self.right[parent] == node)

    def leaves_below(self) -> BoolArray:
        """Return (nodes, leaves) bool, whether each leaf is below each node."""
        below: BoolArray = self.leaf[:, None] == np.arange(self.leaf.max() + 1)
        for node in np.flatnonzero(self.feature >= 0)[::-1]:  # parents come before their children
            below[node] = below[self.left[node]] | below[self.right[node]]
        return below


def select_features(
    x: NDArray[np.float32],
    failed: BoolArray,
    fold: IntArray | None,
    *,
    top_features: int,
    feature_selection: str,
    min_leaf: int | None,
    seed: int,
) -> list[IntArray]:
    """Select features for the tree of all examples, then for the trees without fold 0, without fold 1, and so on.

    Args:
        x: (n, D).
        failed: (n,) bool.
        fold: (n,) int from 0 to K - 1; None for K = 0.
        top_features: Maximum number of features per tree.
        feature_selection: "information_gain" or "mutual_information".
        min_leaf: Minimum size of a leaf, see :func:`min_leaf_size`.
        seed: Seed of the nearest-neighbour estimator of the mutual information.

    Returns:
        K + 1 arrays of at most ``top_features`` indices, best first; empty where the examples cannot be split.
    """
    subsets = [np.full(len(x), True)]
    if fold is not None:
        subsets += [fold != k for k in range(int(fold.max()) + 1)]
    min_sizes = [min_leaf_size(int(kept.sum()), min_leaf) for kept in subsets]
    gains = fold_gains(x, failed, fold, min_sizes) if feature_selection == "information_gain" else None
    selected = []
    for i, kept in enumerate(subsets):
        if kept.sum() < 2 * min_sizes[i] or len(np.unique(failed[kept])) < 2:
            merit = np.zeros(0)
        elif gains is None:
            merit = mutual_info_classif(x[kept], failed[kept], random_state=seed)
        else:
            merit = gains[i]
        selected.append(np.argsort(-merit, kind="stable")[:top_features])
    return selected


def grow_tree(
    columns: NDArray[np.float32],
    failed: BoolArray,
    selected: IntArray,
    *,
    max_depth: int,
    min_leaf: int | None,
    seed: int,
) -> Nodes:
    """Fit scikit-learn's decision tree on the selected features.

    Args:
        columns: (n, F), the selected features.
        failed: (n,) bool.
        selected: (F,) indices of the selected features; a single leaf if F is 0.
        max_depth: Maximum depth of the tree.
        min_leaf: Minimum size of a leaf, see :func:`min_leaf_size`.
        seed: Seed of the order in which scikit-learn tries features.
    """
    if len(selected) == 0:
        no_feature, zero = np.full(1, -1), np.zeros(1, dtype=np.int64)
        return Nodes(no_feature, threshold=np.zeros(1), left=no_feature, right=no_feature, depth=zero, leaf=zero)
    n, n_failed = len(failed), int(failed.sum())
    classifier = DecisionTreeClassifier(
        criterion="entropy", max_depth=max_depth, min_samples_leaf=min_leaf_size(n, min_leaf), random_state=seed
    )
    weight = np.where(failed, (n - n_failed) / n_failed, 1.0)
    with config_context(assume_finite=True, skip_parameter_validation=True):  # checks would take longer than the fit
        classifier.fit(np.ascontiguousarray(columns), failed.astype(np.int64), sample_weight=weight, check_input=False)
    tree = classifier.tree_
    is_leaf = tree.children_left < 0
    depth = np.zeros(tree.node_count, dtype=np.int64)
    for node in np.flatnonzero(~is_leaf):  # parents come before their children
        depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
    return Nodes(
        feature=np.where(is_leaf, -1, selected[np.maximum(tree.feature, 0)]),
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        depth=depth,
        leaf=np.where(is_leaf, np.cumsum(is_leaf) - 1, -1),
    )


def min_leaf_size(n: int, min_leaf: int | None) -> int:
    """Return the minimum size of a leaf: ``min_leaf`` if given, else max(20, 2 % of n)."""
    return max(MIN_LEAF, math.ceil(MIN_LEAF_SHARE * n)) if min_leaf is None else min_leaf


def rule_text(splits: tuple[NodeSplit, ...]) -> str:
    """Return the conditions of a path as text, each feature once with its tightest bounds."""
    bounds: dict[int, tuple[float, float]] = {}
    for split in splits:
        low, high = bounds.get(split.feature, (-math.inf, math.inf))
        bounds[split.feature] = (max(low, split.threshold), high) if split.above else (low, min(high, split.threshold))
    parts = []
    for feature, (low, high) in bounds.items():
        if low == -math.inf:
            parts.append(f"feature {feature} <= {high:.3g}")
        elif high == math.inf:
            parts.append(f"feature {feature} > {low:.3g}")
        else:
            parts.append(f"{low:.3g} < feature {feature} <= {high:.3g}")
    return " and ".join(parts) or "all examples"
