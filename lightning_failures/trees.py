"""Failure trees: a shallow decision tree whose leaves are rules for when a group of examples fails.

Source: Singla, Nushi, Shah, Kamar and Horvitz, Understanding Failures of Deep Networks via Robust Feature Extraction
(Barlow), CVPR 2021, sections 4 and 5.

Departures: features are chosen by the exact information gain of the best split that the tree could make, with the
tree's own class weights (``feature_selection="mutual_information"`` gives scikit-learn's estimator instead); a leaf
holds at least max(20, 2 %) examples; and the claim that there is a pattern rests on folds that neither chose the
features nor grew the leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_selection import mutual_info_classif
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightning_failures.arrays import as_mask, as_matrix, as_vector
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.splits import stratified_group_folds
from lightning_failures.statistics import normal_tail, wilson_interval

__all__ = [
    "FailureTree",
    "Leaf",
    "Split",
    "average_leaf_error_rate",
    "error_coverage",
    "error_rate",
    "fit_failure_tree",
    "information_gain",
]

MIN_LEAF = 20
MIN_LEAF_SHARE = 0.02

_ONE_SIDED_5_PERCENT = 1.64
# Folds fit on each other: in a statistic that is linear in the data each pair of folds enters twice, once either way,
# which doubles the variance of the mean over folds. Without it 4-9 % of null groups passed the 5 % test, with it 1-5 %.
_FOLD_INFLATION = 2.0
# The same for one leaf, with less force: measured on null and planted groups, coverage rises from 86-94 % to 92-98 %.
_INTERVAL_INFLATION = 1.5
_FEATURES_AT_ONCE = 256
_TIE = np.float32(1e-7)  # scikit-learn's trees do not split between values that are closer


def error_rate(failed: Any) -> float:
    """Return ER, the mean of failed over a cluster; NaN for an empty one.

    >>> error_rate([True, False, False, False])
    0.25
    """
    mask = as_mask(failed, "failed", len(failed))
    return float(mask.mean()) if len(mask) else math.nan


def error_coverage(members: Any, failed: Any) -> float:
    """Return EC, the share of all failures that lie in the cluster; NaN if nothing failed.

    Args:
        members: (n,) bool, whether an example belongs to the cluster.
        failed: (n,) bool.

    >>> error_coverage([True, True, False], [True, False, True])
    0.5
    """
    mask = as_mask(failed, "failed", len(failed))
    inside = as_mask(members, "members", len(mask))
    return float((mask & inside).sum() / mask.sum()) if mask.any() else math.nan


def average_leaf_error_rate(leaf_ids: Any, failed: Any) -> float:
    """Return ALER, the sum over leaves of ER(leaf) * EC(leaf): the error rate of the leaf that a typical failure is in.

    It is never below the base error rate, and some leaf has at least this error rate.

    Args:
        leaf_ids: (n,) int, the leaf of each example; the numbers need not be consecutive.
        failed: (n,) bool.

    Returns:
        A value in [0, 1]; NaN if nothing failed, because coverage is undefined then.

    >>> average_leaf_error_rate([0, 0, 1, 1], [True, True, True, False])  # 1 * 2/3 + 1/2 * 1/3
    0.8333333333333334
    """
    mask = as_mask(failed, "failed", len(failed))
    leaves = as_vector(leaf_ids, "leaf_ids", len(mask))
    if not mask.any():
        return math.nan
    _, member = np.unique(leaves, return_inverse=True)
    failures, sizes = np.bincount(member, weights=mask), np.bincount(member)
    return float((failures / sizes * failures).sum() / failures.sum())


@dataclass(frozen=True)
class Split:
    """One condition on the way to a leaf: feature <= threshold, or feature > threshold where ``above``."""

    feature: int
    threshold: float
    above: bool


@dataclass(frozen=True, eq=False)
class Leaf:
    """One rule of a failure tree. All rates are in [0, 1] and come from raw counts, without class weights.

    Attributes:
        rule: For people: "feature 17 <= 0.36 and feature 3 > 1.2"; "all examples" where nothing was split.
        error_rate: ER, failures / size.
        error_coverage: EC, the share of the group's failures that are here; NaN if the group has none.
        importance: IV = ER * EC.
        size: Number of examples.
        failures: Number of failures.
        ids: (size,) int64, the members, ascending.
        splits: The conditions from the root down.
        interval: 95 % Wilson interval of the error rate from held-out folds; None if there are no folds. For each fold
            the tree is grown anew without it, and the leaf's counterpart there is the one with which it shares most
            examples (Jaccard); the interval counts the fold's examples in the counterparts. Examples count for less
            than their number: by the variance between groups, and by a third because folds fit on each other.
    """

    rule: str
    error_rate: float
    error_coverage: float
    importance: float
    size: int
    failures: int
    ids: Tensor
    splits: tuple[Split, ...] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class FailureTree:
    """A partition of a group of examples into leaves.

    Attributes:
        leaves: Ordered by importance, the highest first.
        base_error_rate: BER of the group; NaN for an empty group.
        aler: ALER on the examples that grew the tree: optimistic. NaN if nothing failed.
        heldout_aler: Mean over folds of the sum over leaves of ER(leaf; fitting folds) * EC(leaf; held-out fold); NaN
            without folds.
        heldout_base_error_rate: Mean over folds of BER(fitting folds).
        heldout_aler_stderr: Standard error of ``heldout_aler - heldout_base_error_rate``, with groups as units and
            twice the naive variance, because folds fit on each other.
        selected_features: The features that the tree could choose from, best first.
        skipped: Why the tree was not grown or the folds not made; None if all went well.
    """

    leaves: tuple[Leaf, ...]
    base_error_rate: float
    aler: float
    heldout_aler: float
    heldout_base_error_rate: float
    heldout_aler_stderr: float
    selected_features: tuple[int, ...]
    skipped: str | None
    nodes: _Nodes

    @property
    def heldout_aler_minus_ber(self) -> float:
        """How far a held-out failure's leaf exceeds the base rate: 0 on average where there is nothing."""
        return self.heldout_aler - self.heldout_base_error_rate

    @property
    def pattern(self) -> bool:
        """Whether held-out ALER - BER exceeds 1.64 standard errors. Over many groups correct p-values instead."""
        return self.heldout_aler_minus_ber > _ONE_SIDED_5_PERCENT * self.heldout_aler_stderr

    @property
    def p_value(self) -> float:
        """One-sided p-value of held-out ALER - BER <= 0 (normal); NaN without folds, 1 for a tree without splits."""
        gain, stderr = self.heldout_aler_minus_ber, self.heldout_aler_stderr
        if math.isnan(gain):
            return math.nan
        return normal_tail(gain / stderr) if stderr > 0 else float(gain <= 0)

    @property
    def split_features(self) -> tuple[int, ...]:
        """The features that the rules mention, from the root down, each once."""
        order = np.argsort(self.nodes.depth, kind="stable")
        return tuple(dict.fromkeys(int(f) for f in self.nodes.feature[order] if f >= 0))

    @property
    def worst_leaf(self) -> Leaf | None:
        """The leaf with the largest lower bound of its held-out interval; None without intervals."""
        known = [leaf for leaf in self.leaves if leaf.interval is not None]
        return max(known, key=lambda leaf: (leaf.interval or (0.0,))[0], default=None)

    def valid_leaves(self, delta: float = 0.1, tau: float = 0.2) -> list[Leaf]:
        """Return the leaves with ER > BER + delta and EC > tau, the most important first."""
        return [
            leaf for leaf in self.leaves if leaf.error_rate > self.base_error_rate + delta and leaf.error_coverage > tau
        ]

    def apply(self, features: Any) -> Tensor:
        """Return (n,) int64, the index into :attr:`leaves` of each example.

        Args:
            features: (n, D), the D of the fit.
        """
        x = as_matrix(features, "features")
        if x.shape[1] != self.nodes.width:
            raise DataError(f"features must have {self.nodes.width} dimensions, got {x.shape[1]}")
        return torch.from_numpy(self.nodes.apply(x))


@dataclass(frozen=True, eq=False)
class _Nodes:
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

    def numbered(self, order: NDArray[np.int64]) -> _Nodes:
        """Renumber the leaves: the leaf that was ``order[i]`` becomes i."""
        new = np.empty_like(order)
        new[order] = np.arange(len(order))
        leaf = np.where(self.leaf >= 0, new[self.leaf], -1)
        return _Nodes(self.feature, self.threshold, self.left, self.right, self.depth, leaf, self.width)

    def path(self, leaf: int) -> tuple[Split, ...]:
        """The conditions from the root to a leaf."""
        node, splits = int(np.flatnonzero(self.leaf == leaf)[0]), []
        while node:
            parent = int(np.flatnonzero((self.left == node) | (self.right == node))[0])
            above = bool(self.right[parent] == node)
            splits.append(Split(int(self.feature[parent]), float(self.threshold[parent]), above))
            node = parent
        return tuple(reversed(splits))


def fit_failure_tree(
    features: Any,
    failed: Any,
    *,
    ids: Any = None,
    groups: Any = None,
    top_features: int = 20,
    max_depth: int = 3,
    feature_selection: Literal["information_gain", "mutual_information"] = "information_gain",
    min_leaf: int | None = None,
    folds: int = 5,
    seed: int = 0,
) -> FailureTree:
    """Grow a shallow tree that separates the failures of a group of examples, and score it on held-out folds.

    No state of a running training is an error: a group without failures, with nothing but failures, or too small to be
    split gives one leaf that holds all, and ``skipped`` says why.

    Args:
        features: (n, D) features of one label group or prediction group, any float dtype, never written to.
        failed: (n,) bool.
        ids: (n,) int, unique; members are named by them and rows sorted by them, so that the order in which they come
            has no influence. Default: the row number.
        groups: (n,) names of the sources; examples of one source share a fold. Default: every example is its own
            source.
        top_features: How many features the tree may choose from.
        max_depth: Depth of the tree.
        feature_selection: ``"information_gain"``: of the best split that the tree could make on the feature alone,
            exact. ``"mutual_information"``: scikit-learn's nearest-neighbour estimator, as in the published code.
        min_leaf: Least size of a leaf. Default: max(20, 2 % of the examples).
        folds: Folds of the held-out score, as far as failures and sources allow.
        seed: The only source of randomness.

    Returns:
        The tree, fitted on all examples, with its held-out score.

    Raises:
        DataError: Shapes that do not match, values that are not finite, an id twice.
        ConfigurationError: An option outside its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(400, 30)).round(2)
        >>> tree = fit_failure_tree(x, (x[:, 17] > 1) & (rng.random(400) < 0.9), max_depth=1)
        >>> tree.leaves[0].rule[:12], tree.split_features, tree.pattern
        ('feature 17 >', (17,), True)
    """
    _check_options(top_features, max_depth, feature_selection, min_leaf, folds, seed)
    x = as_matrix(features, "features")
    n = len(x)
    fails = as_mask(failed, "failed", n)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    if n and names.dtype.kind != "i":
        raise DataError("ids must be integers")
    if len(np.unique(names)) < n:
        raise DataError("ids must be unique")
    sources = names if groups is None else as_vector(groups, "groups", n)
    order = np.argsort(names, kind="stable")
    x, fails, names, sources = x[order].astype(np.float32), fails[order], names[order], sources[order]

    def grow(rows: NDArray[np.int64]) -> tuple[_Nodes, NDArray[np.int64]]:
        return _grow(x[rows], fails[rows], top_features, max_depth, feature_selection, min_leaf, seed)

    with threadpool_limits(1):
        nodes, selected = grow(np.arange(n))
        fold = _folds(fails, sources, folds, seed)
        held = _score_held_out(x, fails, sources, fold, nodes, grow)

    leaf = nodes.apply(x)
    count = int(nodes.leaf.max()) + 1
    sizes, failures = np.bincount(leaf, minlength=count), np.bincount(leaf, weights=fails, minlength=count)
    total = failures.sum()
    leaves = [
        Leaf(
            rule=_rule(nodes.path(i)),
            error_rate=_ratio(failures[i], sizes[i]),
            error_coverage=_ratio(failures[i], total),
            importance=_ratio(failures[i], sizes[i]) * _ratio(failures[i], total),
            size=int(sizes[i]),
            failures=int(failures[i]),
            ids=torch.from_numpy(names[leaf == i]),
            splits=nodes.path(i),
            interval=held.intervals[i],
        )
        for i in range(count)
    ]
    ranked = np.array(sorted(range(count), key=lambda i: -np.nan_to_num(leaves[i].importance)), dtype=np.int64)
    return FailureTree(
        leaves=tuple(leaves[i] for i in ranked),
        base_error_rate=error_rate(fails),
        aler=average_leaf_error_rate(leaf, fails),
        heldout_aler=held.aler,
        heldout_base_error_rate=held.base_error_rate,
        heldout_aler_stderr=held.stderr,
        selected_features=tuple(selected.tolist()),
        skipped=_why_skipped(fails, sources, count, min_leaf, fold),
        nodes=nodes.numbered(ranked),
    )


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
    order = np.argsort(x, axis=1)
    value = np.take_along_axis(x, order, axis=1)
    left_failed = np.cumsum(failed[order], axis=1)[:, :-1]  # (D, n - 1): failures at or below each cut
    left_correct = np.arange(1, n) - left_failed
    weight = n_correct / n_failed  # both classes weigh n_correct in all, so the parent has an entropy of one bit
    left = _entropy_mass(left_failed * weight, left_correct)
    right = _entropy_mass((n_failed - left_failed) * weight, n_correct - left_correct)
    gain = 1 - (left + right) / (2 * n_correct)
    cut = value[:, 1:] > value[:, :-1] + _TIE
    cut[:, : min_leaf - 1] = False
    cut[:, n - min_leaf :] = False
    return np.asarray(np.where(cut, gain, 0.0).max(axis=1, initial=0.0))


def _entropy_mass(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """(a + b) * H(a / (a + b)) in bits."""
    return _x_log_x(a + b) - _x_log_x(a) - _x_log_x(b)


def _x_log_x(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(x * np.log2(np.maximum(x, np.finfo(np.float64).tiny)))


def _grow(
    x: NDArray[np.float32],
    failed: NDArray[np.bool_],
    top_features: int,
    max_depth: int,
    feature_selection: str,
    min_leaf: int | None,
    seed: int,
) -> tuple[_Nodes, NDArray[np.int64]]:
    """Select features and fit scikit-learn's tree: (n, D), (n,) -> nodes, selected features."""
    n, width = x.shape
    least = _least_leaf(n, min_leaf)
    n_failed = int(failed.sum())
    if n_failed in (0, n) or n < 2 * least or width == 0:
        alone, nowhere = np.zeros(1, dtype=np.int64), np.full(1, -1)
        return _Nodes(nowhere, np.zeros(1), nowhere, nowhere, alone, alone, width), np.zeros(0, dtype=np.int64)
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
    nodes = _Nodes(
        feature=np.where(is_leaf, -1, selected[np.maximum(tree.feature, 0)]),
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        depth=depth,
        leaf=np.where(is_leaf, np.cumsum(is_leaf) - 1, -1),
        width=width,
    )
    return nodes, selected


@dataclass(frozen=True)
class _HeldOut:
    aler: float
    base_error_rate: float
    stderr: float
    intervals: list[tuple[float, float] | None]


def _score_held_out(
    x: NDArray[np.float32],
    failed: NDArray[np.bool_],
    sources: NDArray[Any],
    fold: NDArray[np.int64] | None,
    nodes: _Nodes,
    grow: Any,
) -> _HeldOut:
    """Grow a tree without each fold and judge it there: held-out ALER, and an interval for each leaf of ``nodes``."""
    leaf = nodes.apply(x)
    count = int(nodes.leaf.max()) + 1
    if fold is None:
        return _HeldOut(math.nan, math.nan, math.nan, [None] * count)
    expected = np.empty(len(x))  # ER of the example's leaf according to the other folds
    base = np.empty(len(x))
    counterpart = np.zeros((count, len(x)), dtype=np.bool_)  # held-out examples in a leaf's counterpart
    for k in np.unique(fold):
        kept, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        fitted, _ = grow(kept)
        there = fitted.apply(x)
        number = int(fitted.leaf.max()) + 1
        sizes = np.bincount(there[kept], minlength=number)
        expected[held] = (np.bincount(there[kept], weights=failed[kept], minlength=number) / sizes)[there[held]]
        base[held] = failed[kept].mean()
        shared = np.zeros((count, number))
        np.add.at(shared, (leaf[kept], there[kept]), 1)
        union = np.bincount(leaf[kept], minlength=count)[:, None] + sizes - shared
        counterpart[:, held] = (shared / union).argmax(axis=1)[:, None] == there[held]

    aler, ber, variance = [], [], 0.0
    for k in np.unique(fold):
        rows = np.flatnonzero(failed & (fold == k))
        gain = expected[rows] - base[rows]
        aler.append(expected[rows].mean())
        ber.append(base[rows[0]])
        variance += _variance_of_mean(gain, sources[rows])
    return _HeldOut(
        float(np.mean(aler)),
        float(np.mean(ber)),
        math.sqrt(_FOLD_INFLATION * variance) / len(aler),
        [_clustered_wilson(failed[mask], sources[mask]) for mask in counterpart],
    )


def _variance_of_mean(values: NDArray[Any], sources: NDArray[Any]) -> float:
    """Variance of a mean whose terms are independent only between sources; generous if there is one source."""
    _, member = np.unique(sources, return_inverse=True)
    count = int(member.max()) + 1
    if count == 1:
        return float(values.var() + values.mean() ** 2)
    totals = np.bincount(member, weights=values - values.mean())
    return float((totals**2).sum() / len(values) ** 2 * count / (count - 1))


def _clustered_wilson(failed: NDArray[np.bool_], sources: NDArray[Any]) -> tuple[float, float]:
    """Wilson interval at the effective number of examples."""
    n, distinct = len(failed), len(np.unique(sources))
    rate = float(failed.mean()) if n else 0.0
    effective = float(distinct)  # where all failed or none did, the sources are what counts
    if distinct < n and 0 < rate < 1:  # n over the design effect
        spread = _variance_of_mean(failed.astype(np.float64), sources)
        effective = min(n, rate * (1 - rate) / spread if spread > 0 else n)
    effective /= _INTERVAL_INFLATION
    return wilson_interval(rate * effective, effective)


def _folds(failed: NDArray[np.bool_], sources: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64] | None:
    """As many folds as failing and succeeding sources can fill, at most ``folds``; None below two."""
    possible = min(folds, len(np.unique(sources[failed])), len(np.unique(sources[~failed])))
    for count in range(possible, 1, -1):
        fold = stratified_group_folds(failed, sources, folds=count, seed=seed)
        if len(np.unique(fold[failed])) == count and len(np.unique(fold[~failed])) == count:
            return fold
    return None


def _why_skipped(
    failed: NDArray[np.bool_],
    sources: NDArray[Any],
    leaves: int,
    min_leaf: int | None,
    fold: NDArray[np.int64] | None,
) -> str | None:
    n = len(failed)
    if not failed.any():
        return "no failures" if n else "no examples"
    if failed.all():
        return "every example failed"
    if n < 2 * _least_leaf(n, min_leaf):
        return f"{n} examples; a split needs at least {2 * _least_leaf(n, min_leaf)}"
    if leaves == 1:
        return "no feature splits the examples"
    if fold is None:
        return "failures or successes come from a single source, so nothing can be held out"
    return None


def _least_leaf(n: int, min_leaf: int | None) -> int:
    return max(MIN_LEAF, math.ceil(MIN_LEAF_SHARE * n)) if min_leaf is None else min_leaf


def _rule(splits: tuple[Split, ...]) -> str:
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


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else math.nan


def _check_options(
    top_features: int, max_depth: int, feature_selection: str, min_leaf: int | None, folds: int, seed: int
) -> None:
    if feature_selection not in ("information_gain", "mutual_information"):
        raise ConfigurationError(
            "fit_failure_tree: feature_selection must be 'information_gain' or 'mutual_information', "
            f"got {feature_selection!r}"
        )
    for name, value, least in (
        ("top_features", top_features, 1),
        ("max_depth", max_depth, 1),
        ("min_leaf", 1 if min_leaf is None else min_leaf, 1),
        ("folds", folds, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigurationError(f"fit_failure_tree: {name} must be at least {least}, got {value}")
