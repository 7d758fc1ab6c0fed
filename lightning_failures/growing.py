"""How a failure tree is grown: features chosen by information gain, scikit-learn's tree on them, rules read off it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import mutual_info_classif
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.arrays import as_mask, as_matrix

__all__ = ["Nodes", "Split", "grow_tree", "information_gain", "least_leaf", "rule"]

MIN_LEAF = 20
MIN_LEAF_SHARE = 0.02

_FEATURES_AT_ONCE = 256
_TIE = np.float32(1e-7)  # scikit-learn's trees do not split between values that are closer


def information_gain(features: Any, failed: Any, *, min_leaf: int = 1) -> NDArray[np.float64]:
    """Return for every feature the information gain of its best split, in bits, with classes weighted to balance.

    It is what a depth-1 ``DecisionTreeClassifier(criterion="entropy", class_weight={0: 1, 1: n_correct / n_failed})``
    on the feature alone gains. One sort and one cumulative sum a feature, no search.

    Args:
        features: (n, D).
        failed: (n,) bool.
        min_leaf: Splits that leave fewer examples on a side do not count.

    Returns:
        (D,) float64 in [0, 1]; 0 for a constant feature, and everywhere if there are no failures or no successes.

    >>> information_gain([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]], [False, True, True])
    array([1., 0.])
    """
    x = as_matrix(features, "features").astype(np.float32, copy=False)
    fails = as_mask(failed, "failed", len(x))
    blocks = range(0, x.shape[1], _FEATURES_AT_ONCE)
    gains = [
        _information_gain(np.ascontiguousarray(x[:, b : b + _FEATURES_AT_ONCE].T), fails, min_leaf) for b in blocks
    ]
    return np.concatenate(gains) if gains else np.zeros(0)


def _information_gain(x: NDArray[np.float32], failed: NDArray[np.bool_], min_leaf: int) -> NDArray[np.float64]:
    n, n_failed = len(failed), int(failed.sum())
    n_correct = n - n_failed
    if n_failed == 0 or n_correct == 0:
        return np.zeros(len(x))
    value, is_failed = _sorted_with_labels(x, failed)
    left_failed = np.cumsum(is_failed, axis=1)[:, :-1]  # (D, n - 1): failures at or below each cut
    left_correct = np.arange(1, n) - left_failed
    weight = n_correct / n_failed  # both classes weigh n_correct in all, so the parent has an entropy of one bit
    # all but the totals are functions of a count: looked up, not computed
    of_failed, of_correct = _x_log_x(np.arange(n_failed + 1) * weight), _x_log_x(np.arange(n_correct + 1.0))
    of_failed, of_correct = of_failed + of_failed[::-1], of_correct + of_correct[::-1]
    left = left_failed * weight + left_correct
    loss = _x_log_x(left) + _x_log_x(2 * n_correct - left) - of_failed[left_failed] - of_correct[left_correct]
    gain = 1 - loss / (2 * n_correct)
    cut = value[:, 1:] > value[:, :-1] + _TIE
    cut[:, : min_leaf - 1] = False
    cut[:, n - min_leaf :] = False
    return np.asarray(np.where(cut, gain, 0.0).max(axis=1, initial=0.0))


def _sorted_with_labels(x: NDArray[np.float32], failed: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Sort each row, and the labels with it: (D, n) values and (D, n) int64 of 0 and 1.

    A float32 keeps its order when its bits are read as an integer (negative ones flipped); with the label as the lowest
    bit one sort of integers does the work of an argsort and two look-ups, several times faster.
    """
    bits = x.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 1
    keys |= failed
    keys.sort(axis=1)
    bits = (keys >> 1).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32), keys & 1


def _x_log_x(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(x * np.log2(np.maximum(x, np.finfo(np.float64).tiny)))


@dataclass(frozen=True)
class Split:
    """One condition on the way to a leaf: feature <= threshold, or feature > threshold where ``above``."""

    feature: int
    threshold: float
    above: bool


@dataclass(frozen=True, eq=False)
class Nodes:
    """The tree as flat arrays, one row a node. A leaf has feature -1 and its number in ``leaf``."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    depth: NDArray[np.int64]
    leaf: NDArray[np.int64]
    width: int

    def apply(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """(n, D) -> (n,) leaf number."""
        node = np.zeros(len(features), dtype=np.int64)
        rows = np.arange(len(features))
        for _ in range(int(self.depth.max())):
            feature = self.feature[node]
            value = features[rows, feature].astype(np.float32)  # scikit-learn compares in float32
            child = np.where(value <= self.threshold[node], self.left[node], self.right[node])
            node = np.where(feature >= 0, child, node)
        return self.leaf[node]

    def numbered(self, order: NDArray[np.int64]) -> Nodes:
        """Renumber the leaves: the leaf that was ``order[i]`` becomes i."""
        new = np.empty_like(order)
        new[order] = np.arange(len(order))
        leaf = np.where(self.leaf >= 0, new[self.leaf], -1)
        return Nodes(self.feature, self.threshold, self.left, self.right, self.depth, leaf, self.width)

    def path(self, leaf: int) -> tuple[Split, ...]:
        """The conditions from the root to a leaf."""
        node, splits = int(np.flatnonzero(self.leaf == leaf)[0]), []
        while node:
            parent = int(np.flatnonzero((self.left == node) | (self.right == node))[0])
            above = bool(self.right[parent] == node)
            splits.append(Split(int(self.feature[parent]), float(self.threshold[parent]), above))
            node = parent
        return tuple(reversed(splits))


def grow_tree(
    x: NDArray[np.float32],
    failed: NDArray[np.bool_],
    top_features: int,
    max_depth: int,
    feature_selection: str,
    min_leaf: int | None,
    seed: int,
) -> tuple[Nodes, NDArray[np.int64]]:
    """Select features and fit scikit-learn's tree: (n, D), (n,) -> nodes, selected features."""
    n, width = x.shape
    least = least_leaf(n, min_leaf)
    n_failed = int(failed.sum())
    if n_failed in (0, n) or n < 2 * least or width == 0:
        alone, nowhere = np.zeros(1, dtype=np.int64), np.full(1, -1)
        return Nodes(nowhere, np.zeros(1), nowhere, nowhere, alone, alone, width), np.zeros(0, dtype=np.int64)
    if feature_selection == "information_gain":
        merit = information_gain(x, failed, min_leaf=least)
    else:
        merit = mutual_info_classif(x, failed, random_state=seed)
    selected = np.argsort(-merit, kind="stable")[:top_features]
    fitted = DecisionTreeClassifier(
        criterion="entropy",
        max_depth=max_depth,
        min_samples_leaf=least,
        class_weight={0: 1.0, 1: (n - n_failed) / n_failed},
        random_state=seed,
    ).fit(x[:, selected], failed.astype(np.int64))
    tree = fitted.tree_
    is_leaf = tree.children_left < 0
    depth = np.zeros(tree.node_count, dtype=np.int64)
    for node in np.flatnonzero(~is_leaf):  # parents come before their children
        depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
    nodes = Nodes(
        feature=np.where(is_leaf, -1, selected[np.maximum(tree.feature, 0)]),
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        depth=depth,
        leaf=np.where(is_leaf, np.cumsum(is_leaf) - 1, -1),
        width=width,
    )
    return nodes, selected


def least_leaf(n: int, min_leaf: int | None) -> int:
    """Return the least size of a leaf: as asked, else max(20, 2 % of n)."""
    return max(MIN_LEAF, math.ceil(MIN_LEAF_SHARE * n)) if min_leaf is None else min_leaf


def rule(splits: tuple[Split, ...]) -> str:
    """Say a path in words, each feature once, with its tightest bounds."""
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
