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
from torch import Tensor

from lightning_failures.core.arrays import as_mask, as_matrix, as_vector
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trees.cross_validation import fillable_folds, score_held_out
from lightning_failures.trees.error_rates import average_leaf_error_rate, error_rate
from lightning_failures.trees.growing import Nodes, NodeSplit, grow_tree, min_leaf_size, rule_text, select_features

_ONE_SIDED_5_PERCENT = 1.64


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
            the tree is grown anew without it. Where the leaf's examples fall into several leaves there, the fold's
            error rates in these are averaged, by how many fall into each. The effective number of examples follows
            from the variance of the average between groups, less a third because folds fit on each other, and is at
            most ``size``.
    """

    rule: str
    error_rate: float
    error_coverage: float
    importance: float
    size: int
    failures: int
    ids: Tensor
    splits: tuple[NodeSplit, ...] = ()
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
        nodes: The whole tree, root first; its leaf i is ``leaves[i]``.
        width: D.
        intervals: Of the error rate of each node, found like those of leaves.
    """

    leaves: tuple[Leaf, ...]
    base_error_rate: float
    aler: float
    heldout_aler: float
    heldout_base_error_rate: float
    heldout_aler_stderr: float
    selected_features: tuple[int, ...]
    skipped: str | None
    nodes: Nodes
    width: int
    intervals: tuple[tuple[float, float] | None, ...]

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
        return 0.5 * math.erfc(gain / stderr / math.sqrt(2)) if stderr > 0 else float(gain <= 0)

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
        if x.shape[1] != self.width:
            raise DataError(f"features must have {self.width} dimensions, got {x.shape[1]}")
        return torch.from_numpy(self.nodes.apply(x))


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
    if not (names[1:] > names[:-1]).all():
        order = np.argsort(names, kind="stable")
        x, fails, names, sources = x[order], fails[order], names[order], sources[order]
    x = x.astype(np.float32, copy=False)

    fold = fillable_folds(fails, sources, folds, seed)
    selected = select_features(
        x,
        fails,
        fold,
        top_features=top_features,
        feature_selection=feature_selection,
        min_leaf=min_leaf,
        seed=seed,
    )
    kept = [np.arange(n)] + [np.flatnonzero(fold != k) for k in range(len(selected) - 1)]
    nodes, *without = (
        grow_tree(x[np.ix_(rows, of)], fails[rows], of, max_depth=max_depth, min_leaf=min_leaf, seed=seed)
        for rows, of in zip(kept, selected, strict=True)
    )
    leaf, below = nodes.apply(x), nodes.leaves_below()
    held = score_held_out(x, fails, sources, fold, below[:, leaf], without)
    count = below.shape[1]
    place = np.argsort(nodes.leaf, kind="stable")[-count:]  # of each leaf among the nodes
    sizes, failures = np.bincount(leaf, minlength=count), np.bincount(leaf, weights=fails, minlength=count)
    total = failures.sum()
    leaves = [
        Leaf(
            rule=rule_text(nodes.path(i)),
            error_rate=_ratio(failures[i], sizes[i]),
            error_coverage=_ratio(failures[i], total),
            importance=_ratio(failures[i], sizes[i]) * _ratio(failures[i], total),
            size=int(sizes[i]),
            failures=int(failures[i]),
            ids=torch.from_numpy(names[leaf == i]),
            splits=nodes.path(i),
            interval=held.intervals[place[i]],
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
        selected_features=tuple(selected[0].tolist()),
        skipped=_why_skipped(fails, sources, count, min_leaf, fold),
        nodes=nodes.numbered(ranked),
        width=x.shape[1],
        intervals=tuple(held.intervals),
    )


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
    if n < 2 * min_leaf_size(n, min_leaf):
        return f"{n} examples; a split needs at least {2 * min_leaf_size(n, min_leaf)}"
    if leaves == 1:
        return "no feature splits the examples"
    if fold is None:
        return "failures or successes come from a single source, so nothing can be held out"
    return None


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
