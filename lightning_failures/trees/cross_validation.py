"""Held-out score of a failure tree: ALER and intervals from folds that did not grow it.

ALER computed from the counts of held-out data alone is at least the base error rate for *any* partition, so it cannot
show the absence of a pattern. Here the error rate of a leaf comes from the fitting folds and its coverage from the
held-out fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.stats.folds import stratified_group_folds
from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.trees.growing import Nodes

# Each fold is scored by fits on the others: in a statistic that is linear in the data every pair of folds enters twice,
# which doubles the variance of the mean over folds. Without this factor 4-9 % of null groups passed the 5 % test, with
# it 1-5 %.
_FOLD_INFLATION = 2.0
# The same effect on the rate of one leaf is smaller: tuned on simulated null and planted groups, checked on others.
_INTERVAL_INFLATION = 1.5


def fillable_folds(failed: BoolArray, sources: NDArray[Any], folds: int, seed: int) -> IntArray | None:
    """Return stratified folds, as many as failures and successes can fill but at most ``folds``; None below two."""
    possible = min(folds, len(np.unique(sources[failed])), len(np.unique(sources[~failed])))
    for count in range(possible, 1, -1):
        fold = stratified_group_folds(failed, sources, folds=count, seed=seed)
        if len(np.unique(fold[failed])) == count and len(np.unique(fold[~failed])) == count:
            return fold
    return None


@dataclass(frozen=True)
class HeldOut:
    """Held-out ALER, base error rate of the fitting folds, and one error rate and interval per set.

    Attributes:
        aler: Held-out ALER; NaN without folds.
        base_error_rate: Mean error rate of the fitting folds; NaN without folds.
        stderr: Standard error of their difference; NaN without folds.
        error_rates: Held-out error rate of each set; None without folds.
        intervals: 95 % interval of each held-out error rate; None without folds.
    """

    aler: float
    base_error_rate: float
    stderr: float
    error_rates: list[float | None]
    intervals: list[tuple[float, float] | None]


def score_held_out(
    x: NDArray[Any],
    failed: BoolArray,
    sources: NDArray[Any],
    fold: IntArray | None,
    sets: BoolArray,
    trees: Sequence[Nodes],
) -> HeldOut:
    """Score each tree on the fold it was grown without: held-out ALER, and an error rate for each set of examples.

    The held-out rate of a set, such as a leaf of the tree of all examples, is a weighted mean of the held-out rates of
    the leaves into which its examples fall in a tree grown without the fold, weighted by the numbers of examples. The
    rate of a set of all examples, which no tree selected, is their error rate.

    Args:
        x: (n, D).
        failed: (n,) bool.
        sources: (n,) names of the sources.
        fold: (n,) int from 0 to K - 1, or None.
        sets: (S, n) bool, whether each example belongs to each set.
        trees: The K trees grown without fold 0, 1, and so on.
    """
    if fold is None:
        return HeldOut(math.nan, math.nan, math.nan, [None] * len(sets), [None] * len(sets))
    source = np.unique(sources, return_inverse=True)[1]
    weight = np.zeros(sets.shape)  # weight of each held-out example in the rate of each set
    aler, ber, variance = [], [], 0.0
    for k, fitted in enumerate(trees):
        kept, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        leaf = fitted.apply(x)
        n_leaves = int(fitted.leaf.max()) + 1

        # the error rate of each leaf on the fitting folds
        n_fitted = np.bincount(leaf[kept], minlength=n_leaves)
        rate = np.bincount(leaf[kept], weights=failed[kept], minlength=n_leaves) / n_fitted

        # a held-out example stands for the members of a set that share its leaf
        n_held = np.bincount(leaf[held], minlength=n_leaves)
        n_members = np.array([np.bincount(leaf[kept[members[kept]]], minlength=n_leaves) for members in sets])
        weight[:, held] = (n_members / np.maximum(n_held, 1))[:, leaf[held]]

        # ALER: the mean rate of the leaves of the held-out failures
        failures = held[failed[held]]
        aler.append(rate[leaf[failures]].mean())
        ber.append(failed[kept].mean())
        variance += _variance_of_mean(rate[leaf[failures]] - ber[-1], np.ones(len(failures)), source[failures])
    base = float(failed.mean())
    return HeldOut(
        float(np.mean(aler)),
        float(np.mean(ber)),
        math.sqrt(_FOLD_INFLATION * variance) / len(aler),
        [base if members.all() else _rate(failed, weight[i]) for i, members in enumerate(sets)],
        [_interval(failed, weight[i], source, int(sets[i].sum())) for i in range(len(sets))],
    )


def _rate(failed: BoolArray, weight: FloatArray) -> float | None:
    """Return the weighted error rate; None without weights."""
    total = weight.sum()
    return float(failed @ weight / total) if total else None


def _interval(failed: BoolArray, weight: FloatArray, source: IntArray, most: int) -> tuple[float, float]:
    """Return the Wilson interval of a weighted rate at its effective number of examples, at most ``most``."""
    used = np.flatnonzero(weight)
    if len(used) == 0:
        return wilson_interval(0, 0)
    f, w, source_of = failed[used].astype(np.float64), weight[used], source[used]
    if f.min() == f.max():  # no variance to estimate: the effective number of sources
        rate = float(f[0])
        effective = float(w.sum() ** 2 / (np.bincount(source_of, weights=w) ** 2).sum())
    else:
        rate = float(f @ w / w.sum())
        variance = _variance_of_mean(f, w, source_of)
        effective = rate * (1 - rate) / variance if variance > 0 else math.inf
    effective = min(effective / _INTERVAL_INFLATION, float(most))
    return wilson_interval(rate * effective, effective)


def _variance_of_mean(values: FloatArray, weight: FloatArray, source: IntArray) -> float:
    """Return the variance of a weighted mean of terms independent between sources; conservative for one source."""
    total = weight.sum()
    mean = values @ weight / total
    count = np.count_nonzero(np.bincount(source))
    if count == 1:
        return float(values**2 @ weight / total)
    deviation = np.bincount(source, weights=weight * (values - mean))
    return float((deviation**2).sum() / total**2 * count / (count - 1))
