"""Failure trees: shallow decision trees whose leaves are rules for when a group of examples fails.

Source: Singla, Nushi, Shah, Kamar and Horvitz, Understanding Failures of Deep Networks via Robust Feature Extraction
(Barlow), CVPR 2021, sections 4 and 5.

Departures from the paper: features are selected by the exact information gain of the best split that the tree could
make, with the class weights of the tree (``feature_selection="mutual_information"`` uses scikit-learn's estimator
instead); a leaf has at least max(20, 2 %) examples; and evidence for a pattern comes from folds that neither selected
the features nor grew the leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_mask, as_matrix, as_rows, as_vector, finite_rows_of
from lightning_failures.core.hashing import row_hashes
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import join_sources
from lightning_failures.trees.cross_validation import HeldOut, fillable_folds, score_held_out
from lightning_failures.trees.error_rates import average_leaf_error_rate, coverage_at_rate, error_rate
from lightning_failures.trees.growing import Nodes, NodeSplit, grow_trees, min_leaf_size, rule_text, select_features

_ONE_SIDED_5_PERCENT = 1.64
_DIFFERING = 8  # features in which two rows that describe different images differ at least
_COMPARED = 200  # rows that are compared for it


@dataclass(frozen=True, eq=False)
class Leaf:
    """One leaf of a failure tree and its rule. All rates are in [0, 1], from raw counts without class weights.

    Attributes:
        rule: The rule as text: "feature 17 <= 0.36 and feature 3 > 1.2"; "all examples" for a tree without splits.
        error_rate: ER, failures / size.
        error_coverage: EC, the share of the group's failures that are in the leaf; NaN for a group without failures.
        importance: IV = ER * EC.
        size: Number of examples.
        failures: Number of failures.
        ids: (size,) int64, the ids of the members, ascending.
        splits: The conditions on the path from the root.
        interval: 95 % Wilson interval of the error rate from held-out folds; None without folds. A tree is grown
            without each fold. If the examples of the leaf fall into several leaves of that tree, the held-out error
            rates of these leaves are averaged, weighted by the number of examples in each. The effective number of
            examples follows from the variance of the average between groups, reduced by a third because each fold is
            scored by fits on the others, and is at most ``size``.
        heldout_error_rate: The average that ``interval`` belongs to; None without folds.
        heldout_error_coverage: The error coverage at that rate, ``heldout_error_rate * size`` as a share of the group's
            failures, at most 1; None without folds.
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
    heldout_error_rate: float | None = None
    heldout_error_coverage: float | None = None


@dataclass(frozen=True, eq=False)
class FailureTree:
    """A partition of a group of examples into leaves.

    Attributes:
        leaves: The leaves, most important first.
        base_error_rate: BER of the group; NaN for an empty group.
        aler: ALER on the examples that grew the tree, which is optimistic. NaN without failures.
        heldout_aler: Mean over folds of the sum over leaves of ER(leaf; fitting folds) * EC(leaf; held-out fold); NaN
            without folds.
        heldout_base_error_rate: Mean over folds of BER(fitting folds).
        heldout_aler_stderr: Standard error of ``heldout_aler - heldout_base_error_rate``, with groups as units and
            twice the naive variance, because each fold is scored by fits on the others.
        selected_features: The features from which the tree could choose, best first.
        skipped: Why there is no tree or no held-out score; None if there are both.
        nodes: The whole tree, root first; its leaf i is ``leaves[i]``.
        width: D, the number of features.
        intervals: Interval of the error rate of each node, computed like those of the leaves.
        heldout_error_rates: Held-out error rate of each node, computed like those of the leaves; that of the root is
            the base error rate.
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
    heldout_error_rates: tuple[float | None, ...]

    @property
    def heldout_aler_minus_ber(self) -> float:
        """Held-out ALER - BER, the score of the tree: 0 on average without a pattern."""
        return self.heldout_aler - self.heldout_base_error_rate

    @property
    def pattern(self) -> bool:
        """Whether held-out ALER - BER exceeds 1.64 standard errors; for many groups correct the p-values instead."""
        return self.heldout_aler_minus_ber > _ONE_SIDED_5_PERCENT * self.heldout_aler_stderr

    @property
    def p_value(self) -> float:
        """One-sided p-value of held-out ALER - BER <= 0 (normal); NaN without folds, 1 for a tree without splits."""
        gain, stderr = self.heldout_aler_minus_ber, self.heldout_aler_stderr
        if math.isnan(gain):
            return math.nan
        if stderr <= 0:
            return float(gain <= 0)
        return 0.5 * math.erfc(gain / stderr / math.sqrt(2))  # upper tail of the standard normal distribution

    @property
    def split_features(self) -> tuple[int, ...]:
        """The features that the rules mention, each once, from the root down."""
        order = np.argsort(self.nodes.depth, kind="stable")
        return tuple(dict.fromkeys(int(f) for f in self.nodes.feature[order] if f >= 0))

    @property
    def worst_leaf(self) -> Leaf | None:
        """The leaf with the largest lower bound of its held-out interval; None without intervals."""
        with_interval = [leaf for leaf in self.leaves if leaf.interval is not None]
        return max(with_interval, key=lambda leaf: (leaf.interval or (0.0,))[0], default=None)

    def valid_leaves(self, delta: float = 0.1, tau: float = 0.2, *, held_out: bool = False) -> list[Leaf]:
        """Return the leaves with ER > BER + delta and EC > tau, most important first.

        Args:
            delta: Minimum excess of the error rate over the base error rate.
            tau: Minimum error coverage.
            held_out: Whether error rate and error coverage are the held-out ones. Those of the examples that grew the
                tree are optimistic: many leaves that they call valid are not valid on fresh data.
        """

        def valid(rate: float | None, coverage: float | None) -> bool:
            return rate is not None and coverage is not None and rate > self.base_error_rate + delta and coverage > tau

        if held_out:
            return [leaf for leaf in self.leaves if valid(leaf.heldout_error_rate, leaf.heldout_error_coverage)]
        return [leaf for leaf in self.leaves if valid(leaf.error_rate, leaf.error_coverage)]

    def apply(self, features: Any) -> Tensor:
        """Return (n,) int64, the index into :attr:`leaves` of each example.

        Args:
            features: (n, D), with as many features as in the fit.
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

    Groups that occur in a running training raise no error: a group without failures, with failures only, or too small
    to be split gives a single leaf with all examples, and ``skipped`` holds the reason.

    Args:
        features: (n, D) features of one label group or prediction group, any float dtype, never written to.
        failed: (n,) bool.
        ids: (n,) int, unique names of the examples. Rows are sorted by id first, so their order has no influence.
            Default: the row number.
        groups: (n,) names of the sources; examples of one source share a fold. Default: every example is its own
            source. Examples with exactly equal features are copies of one image, and always one source, unless even
            different rows differ in few features, as rows of some attributes do.
        top_features: Number of features from which the tree can choose.
        max_depth: Maximum depth of the tree.
        feature_selection: ``"information_gain"``: exact gain of the best split that the tree could make on the feature
            alone. ``"mutual_information"``: scikit-learn's nearest-neighbour estimator, as in the published code.
        min_leaf: Minimum size of a leaf. Default: max(20, 2 % of the examples).
        folds: Maximum number of folds of the held-out score; fewer if failures or sources cannot fill them.
        seed: The only source of randomness.

    Returns:
        The tree, fitted on all examples, with its held-out score.

    Raises:
        DataError: Shapes do not match, a value is not finite, or an id occurs twice.
        ConfigurationError: An option outside its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(400, 30)).round(2)
        >>> tree = fit_failure_tree(x, (x[:, 17] > 1) & (rng.random(400) < 0.9), max_depth=1)
        >>> tree.leaves[0].rule[:12], tree.split_features, tree.pattern
        ('feature 17 >', (17,), True)
    """
    _check_options(top_features, max_depth, feature_selection, min_leaf, folds, seed)
    x = as_rows(features, "features")  # half precision stays half; everything compares in single precision
    n = len(x)
    fails = as_mask(failed, "failed", n)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    if n and names.dtype.kind != "i":
        raise DataError("ids must be integers")
    if len(np.unique(names)) < n:
        raise DataError("ids must be unique")
    sources = names if groups is None else as_vector(groups, "groups", n)
    sources = _join_copies(sources, x)
    if not (names[1:] > names[:-1]).all():
        order = np.argsort(names, kind="stable")
        x, fails, names, sources = x[order], fails[order], names[order], sources[order]
    if x.dtype == np.float64:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not finite_rows_of(x).all():
            raise DataError("features must lie within the range of float32")

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

    nodes, *without_fold = grow_trees(x, fails, fold, selected, max_depth=max_depth, min_leaf=min_leaf)
    leaf, below = nodes.apply(x), nodes.leaves_below()
    held_out = score_held_out(x, fails, sources, fold, below[:, leaf], without_fold)

    leaves = _leaves(nodes, leaf, fails, names, held_out)
    ranked = np.array(sorted(range(len(leaves)), key=lambda i: -np.nan_to_num(leaves[i].importance)), dtype=np.int64)
    return FailureTree(
        leaves=tuple(leaves[i] for i in ranked),
        base_error_rate=error_rate(fails),
        aler=average_leaf_error_rate(leaf, fails),
        heldout_aler=held_out.aler,
        heldout_base_error_rate=held_out.base_error_rate,
        heldout_aler_stderr=held_out.stderr,
        selected_features=tuple(selected[0].tolist()),
        skipped=_why_skipped(fails, sources, len(leaves), min_leaf, fold),
        nodes=nodes.numbered(ranked),
        width=x.shape[1],
        intervals=tuple(held_out.intervals),
        heldout_error_rates=tuple(held_out.error_rates),
    )


def _leaves(nodes: Nodes, leaf: IntArray, failed: BoolArray, ids: IntArray, held_out: HeldOut) -> list[Leaf]:
    """Return the leaves of a tree by number; ``leaf`` (n,) is the leaf number of each example."""
    sizes = np.bincount(leaf, minlength=np.count_nonzero(nodes.leaf >= 0))
    failures = np.bincount(leaf, weights=failed, minlength=len(sizes))
    node_of_leaf = np.argsort(nodes.leaf, kind="stable")[-len(sizes) :]
    leaves = []
    for i, node in enumerate(node_of_leaf):
        rate, coverage = _ratio(failures[i], sizes[i]), _ratio(failures[i], failures.sum())
        heldout_rate = held_out.error_rates[node]
        leaves.append(
            Leaf(
                rule=rule_text(nodes.path(i)),
                error_rate=rate,
                error_coverage=coverage,
                importance=rate * coverage,
                size=int(sizes[i]),
                failures=int(failures[i]),
                ids=torch.from_numpy(ids[leaf == i]),
                splits=nodes.path(i),
                interval=held_out.intervals[node],
                heldout_error_rate=heldout_rate,
                heldout_error_coverage=coverage_at_rate(heldout_rate, int(sizes[i]), int(failures.sum())),
            )
        )
    return leaves


def _join_copies(sources: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Join the sources of equal rows (n, D), if rows are so detailed that only those of copies are equal.

    Different images differ in most features of a model; rows of a few attributes with a few values do not.
    """
    hashes = row_hashes(x)
    distinct = np.sort(np.unique(hashes, return_index=True)[1])
    if len(distinct) == len(x) or len(distinct) < 2:
        return sources
    some = distinct[:_COMPARED]
    differing = [int((x[one] != x[other]).sum()) for one, other in pairwise(some)]
    return join_sources(sources, hashes) if np.median(differing) >= _DIFFERING else sources


def _why_skipped(
    failed: BoolArray,
    sources: NDArray[Any],
    leaves: int,
    min_leaf: int | None,
    fold: IntArray | None,
) -> str | None:
    """Return why there is no tree or no held-out score, or None if there are both."""
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
    """Return a / b, and NaN for b = 0."""
    return float(a / b) if b else math.nan


def _check_options(
    top_features: int, max_depth: int, feature_selection: str, min_leaf: int | None, folds: int, seed: int
) -> None:
    """Raise a ConfigurationError for an option outside its range."""
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
