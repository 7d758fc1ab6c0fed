"""Grow failure trees: select features, grow decision trees on them, and write their rules as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import mutual_info_classif

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.trees.information_gain import best_features, sort_features

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
    x: NDArray[Any],
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
        x: (n, D), any float dtype; compared in float32.
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
    can_split = [
        kept.sum() >= 2 * least and 0 < failed[kept].sum() < kept.sum()
        for kept, least in zip(subsets, min_sizes, strict=True)
    ]
    none = np.zeros(0, dtype=np.int64)
    if feature_selection == "information_gain":
        best = best_features(x, failed, fold, min_sizes, top_features) if any(can_split) else []
        return [best[i] if splits else none for i, splits in enumerate(can_split)]
    selected = []
    for kept, splits in zip(subsets, can_split, strict=True):
        columns = x[kept].astype(np.float32, copy=False) if splits else x[:0]
        merit = mutual_info_classif(columns, failed[kept], random_state=seed) if splits else none
        selected.append(np.argsort(-merit, kind="stable")[:top_features])
    return selected


def grow_trees(
    x: NDArray[Any],
    failed: BoolArray,
    fold: IntArray | None,
    selected: Sequence[IntArray],
    *,
    max_depth: int,
    min_leaf: int | None,
) -> list[Nodes]:
    """Grow the tree of all examples, then the trees without fold 0, without fold 1, and so on.

    They equal scikit-learn's ``DecisionTreeClassifier(criterion="entropy", class_weight="balanced")``, but for cuts
    with equal gains, of which that on the best feature wins, then the lowest; scikit-learn draws lots.

    Args:
        x: (n, D).
        failed: (n,) bool.
        fold: (n,) int from 0 to K - 1; None for K = 0.
        selected: The features of each of the K + 1 trees, best first; a tree without features is a single leaf.
        max_depth: Maximum depth of a tree.
        min_leaf: Minimum size of a leaf, see :func:`min_leaf_size`.
    """
    # sort every feature once
    used, place = np.unique(np.concatenate(selected), return_inverse=True)
    keys = np.empty((len(used), len(x)), dtype=np.int64)
    if len(used):
        sort_features(x, used, 2 * np.arange(len(x)) + failed, keys)
    row = (keys & 0xFFFFFFFF) >> 1
    numbers = np.arange(1, len(x) + 1)
    logs = np.concatenate([[0.0], numbers * np.log2(numbers)])

    trees = []
    places = np.split(place.reshape(-1), np.cumsum([len(features) for features in selected])[:-1])
    for k, (features, chosen) in enumerate(zip(selected, places, strict=True)):
        if len(features) == 0:
            none, zero = np.full(1, -1), np.zeros(1, dtype=np.int64)
            trees.append(Nodes(none, threshold=np.zeros(1), left=none, right=none, depth=zero, leaf=zero))
            continue
        kept = np.full(len(x), True) if k == 0 or fold is None else fold != k - 1
        its_keys = keys[chosen]
        if not kept.all():
            its_keys = its_keys[kept[row[chosen]]].reshape(len(chosen), -1)
        trees.append(_grow(its_keys, features, failed[kept], logs, max_depth, min_leaf))
    return trees


def _grow(
    keys: IntArray, features: IntArray, failed: BoolArray, logs: FloatArray, max_depth: int, min_leaf: int | None
) -> Nodes:
    """Grow one tree on the sorted keys (F, m) of its features."""
    from lightning_failures.stats.kernels.tree import grow

    m, n_failed = len(failed), int(failed.sum())
    least = min_leaf_size(m, min_leaf)
    most = 2 * max(m // least, 1)  # a little more than the largest number of nodes
    feature, left, right, depth = np.empty((4, most), dtype=np.int64)
    threshold = np.empty(most)
    weight = (m - n_failed) / n_failed
    count = grow(keys, weight, least, max_depth, logs, feature, threshold, left, right, depth)
    feature = feature[:count]
    is_leaf = feature < 0
    return Nodes(
        feature=np.where(is_leaf, -1, features[feature]),
        threshold=threshold[:count],
        left=left[:count],
        right=right[:count],
        depth=depth[:count],
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
