"""What a failure tree is worth on data that did not grow it.

ALER recomputed with the counts of held-out data alone is at least the base error rate for *any* partition, so it cannot
say "nothing there". Here the error rate of a leaf comes from the fitting folds and its coverage from the held-out fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.stats.folds import stratified_group_folds
from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.trees.growing import Nodes

# Folds fit on each other: in a statistic that is linear in the data each pair of folds enters twice, once either way,
# which doubles the variance of the mean over folds. Without it 4-9 % of null groups passed the 5 % test, with it 1-5 %.
_FOLD_INFLATION = 2.0
# The same for one leaf, with less force: found on simulated null and planted groups, checked on others.
_INTERVAL_INFLATION = 1.5


def fillable_folds(failed: NDArray[np.bool_], sources: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64] | None:
    """As many folds as failing and succeeding sources can fill, at most ``folds``; None below two."""
    possible = min(folds, len(np.unique(sources[failed])), len(np.unique(sources[~failed])))
    for count in range(possible, 1, -1):
        fold = stratified_group_folds(failed, sources, folds=count, seed=seed)
        if len(np.unique(fold[failed])) == count and len(np.unique(fold[~failed])) == count:
            return fold
    return None


@dataclass(frozen=True)
class HeldOut:
    """Held-out ALER, base error rate of the fitting folds, and an interval a set; NaN and None without folds."""

    aler: float
    base_error_rate: float
    stderr: float
    intervals: list[tuple[float, float] | None]


def score_held_out(
    x: NDArray[np.float32],
    failed: NDArray[np.bool_],
    sources: NDArray[Any],
    fold: NDArray[np.int64] | None,
    sets: NDArray[np.bool_],
    trees: Sequence[Nodes],
) -> HeldOut:
    """Judge the trees grown without a fold on that fold: held-out ALER, and an interval for each set of examples.

    The held-out rate of a set, such as a leaf of the tree of all examples, weighs the held-out rates of the leaves that
    its examples fall into when a tree is grown without the fold, by how many fall into each.

    Args:
        x: (n, D).
        failed: (n,) bool.
        sources: (n,) names.
        fold: (n,) int from 0 to K - 1, or None.
        sets: (S, n) bool.
        trees: The K trees grown without fold 0, 1, ...
    """
    if fold is None:
        return HeldOut(math.nan, math.nan, math.nan, [None] * len(sets))
    source = np.unique(sources, return_inverse=True)[1]
    weight = np.zeros(sets.shape)  # of each held-out example in the rate of each set
    aler, ber, variance = [], [], 0.0
    for k, fitted in enumerate(trees):
        kept, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        there, number = fitted.apply(x), int(fitted.leaf.max()) + 1
        grown_on = np.bincount(there[kept], minlength=number)
        judged_on = np.bincount(there[held], minlength=number)
        rate = np.bincount(there[kept], weights=failed[kept], minlength=number) / grown_on
        shared = np.array([np.bincount(there[kept[members[kept]]], minlength=number) for members in sets])
        weight[:, held] = (shared / np.maximum(judged_on, 1))[:, there[held]]

        rows = held[failed[held]]
        aler.append(rate[there[rows]].mean())
        ber.append(failed[kept].mean())
        variance += _variance_of_mean(rate[there[rows]] - ber[-1], np.ones(len(rows)), source[rows])
    return HeldOut(
        float(np.mean(aler)),
        float(np.mean(ber)),
        math.sqrt(_FOLD_INFLATION * variance) / len(aler),
        [_interval(failed, weight[i], source, int(sets[i].sum())) for i in range(len(sets))],
    )


def _interval(
    failed: NDArray[np.bool_], weight: NDArray[np.float64], source: NDArray[np.int64], most: int
) -> tuple[float, float]:
    """Wilson interval of a weighted rate at its effective number of examples, which is ``most`` or fewer."""
    used = np.flatnonzero(weight)
    if len(used) == 0:
        return wilson_interval(0, 0)
    f, w, of = failed[used].astype(np.float64), weight[used], source[used]
    if f.min() == f.max():  # there is no variance to see; the sources are what counts
        rate, effective = float(f[0]), float(w.sum() ** 2 / (np.bincount(of, weights=w) ** 2).sum())
    else:
        rate, variance = float(f @ w / w.sum()), _variance_of_mean(f, w, of)
        effective = rate * (1 - rate) / variance if variance > 0 else math.inf
    effective = min(effective / _INTERVAL_INFLATION, float(most))
    return wilson_interval(rate * effective, effective)


def _variance_of_mean(values: NDArray[np.float64], weight: NDArray[np.float64], source: NDArray[np.int64]) -> float:
    """Variance of a weighted mean whose terms are independent only between sources; generous if there is one source."""
    total = weight.sum()
    mean = values @ weight / total
    count = np.count_nonzero(np.bincount(source))
    if count == 1:
        return float(values**2 @ weight / total)
    deviation = np.bincount(source, weights=weight * (values - mean))
    return float((deviation**2).sum() / total**2 * count / (count - 1))
