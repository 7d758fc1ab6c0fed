"""Information gain of the best split of each feature, exact, for all features at once.

Every feature is sorted once. The gain of a cut depends only on the numbers of failures and successes below it, so it is
looked up in a table, and leaving out a fold takes one more pass over the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_mask, as_matrix
from lightning_failures.core.types import BoolArray, FloatArray, IntArray

_KEYS_AT_ONCE = 2**17  # a block of features that is sorted within the processor's cache
_MAX_CELLS = 2**24  # of all tables, 128 MiB; with more cells, or with fewer cuts than cells, gains are computed per cut


def information_gain(features: Any, failed: Any, *, min_leaf: int = 1) -> FloatArray:
    """Return the information gain of the best split of each feature, in bits, with balanced class weights.

    The gain equals that of a depth-1 ``DecisionTreeClassifier(criterion="entropy", class_weight={0: 1, 1: n_correct /
    n_failed})`` on the feature alone.

    Args:
        features: (n, D), any float dtype.
        failed: (n,) bool.
        min_leaf: Minimum number of examples on either side of a split.

    Returns:
        (D,) float64 in [0, 1]; 0 for a constant feature, and for all features without failures or without successes.

    Raises:
        DataError: Shapes do not match, or a value is not finite.

    >>> information_gain([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]], [False, True, True])
    array([1., 0.])
    """
    x = as_matrix(features, "features").astype(np.float32, copy=False)
    fails = as_mask(failed, "failed", len(x))
    return np.asarray(fold_gains(x, fails, None, [min_leaf])[0])


def fold_gains(x: NDArray[np.float32], failed: BoolArray, fold: IntArray | None, min_leaf: Sequence[int]) -> FloatArray:
    """Return the information gain of each feature on all examples, then without fold 0, without fold 1, and so on.

    Values closer than 1e-7 to a neighbour among *all* examples count as one value in every fold.

    Args:
        x: (n, D).
        failed: (n,) bool.
        fold: (n,) int from 0 to K - 1; None for K = 0.
        min_leaf: K + 1 minimum sizes of a side.

    Returns:
        (K + 1, D) float64.
    """
    from lightning_failures.stats.kernels.gain import best_gains, pack

    n, width = x.shape
    best = np.zeros((len(min_leaf), width))
    if not 0 < failed.sum() < n:
        return best

    # one code per fold and outcome, and one subset of the codes for each fold that is left out
    x = np.ascontiguousarray(x)
    code = failed.astype(np.int64) if fold is None else 2 * fold + failed
    sizes = np.bincount(code)
    subsets = [_Subset.without(k - 1, sizes, least) for k, least in enumerate(min_leaf)]
    cells = np.array([subset.cells for subset in subsets])
    by_table = cells.sum() <= min(_MAX_CELLS, len(subsets) * x.size)
    if by_table:
        tables = np.concatenate([subset.table() for subset in subsets])
        step = np.stack([subset.step for subset in subsets])

    # sort a block of features, then evaluate every cut for every subset
    block = max(1, min(width, _KEYS_AT_ONCE // n))
    keys = np.empty((block, n), dtype=np.int64)
    for first in range(0, width, block):
        rows, found = keys[: width - first], best[:, first : first + block]
        pack(x, code, first, rows)
        rows.sort(axis=1)
        if by_table:
            best_gains(rows, tables, np.cumsum(cells) - cells, step, found)
        else:
            found[:] = _cut_by_cut(rows, subsets)
    return best


@dataclass(frozen=True)
class _Subset:
    """The examples outside a fold, or all examples.

    Examples of the same fold and outcome share a code, 2 * fold + failed.
    """

    failed: IntArray  # (codes,) number of failures that an example of each code adds: 0 or 1
    correct: IntArray  # (codes,) number of successes that an example of each code adds: 0 or 1
    n_failed: int
    n_correct: int
    min_leaf: int

    @classmethod
    def without(cls, fold: int, sizes: IntArray, min_leaf: int) -> _Subset:
        """Return the subset without a fold, or all examples for fold -1; ``sizes`` (codes,) counts the examples."""
        fold_of, failed = np.divmod(np.arange(len(sizes)), 2)
        kept = (fold_of != fold).astype(np.int64)
        failed, correct = kept * failed, kept * (1 - failed)
        return cls(failed, correct, int(failed @ sizes), int(correct @ sizes), min_leaf)

    def gain(self, failures: IntArray, successes: IntArray) -> FloatArray:
        """Return the gain of cuts by the numbers of failures and successes on one side.

        The gain is 0 if a side has fewer than ``min_leaf`` examples.
        """
        size = failures + successes
        if self.n_failed == 0 or self.n_correct == 0:
            return np.zeros(size.shape)
        weight = self.n_correct / self.n_failed  # both classes weigh n_correct: the parent has an entropy of one bit
        # the terms x log x of both sides, for every possible number of failures and of successes on one side
        of_failed = _x_log_x(np.arange(self.n_failed + 1) * weight)
        of_failed = of_failed + of_failed[::-1]
        of_correct = _x_log_x(np.arange(self.n_correct + 1.0))
        of_correct = of_correct + of_correct[::-1]
        side = failures * weight + successes
        loss = _x_log_x(side) + _x_log_x(2 * self.n_correct - side) - of_failed[failures] - of_correct[successes]
        enough = (size >= self.min_leaf) & (size <= self.n_failed + self.n_correct - self.min_leaf)
        return np.where(enough, 1 - loss / (2 * self.n_correct), 0.0)

    @property
    def cells(self) -> int:
        """Number of cells of the table."""
        return (self.n_failed + 1) * (self.n_correct + 1)

    @property
    def step(self) -> IntArray:
        """(codes,) number of cells of the table by which an example of each code advances."""
        return self.failed * (self.n_correct + 1) + self.correct

    def table(self) -> FloatArray:
        """Return the gains of all cuts, (cells,): row by row for the number of failures."""
        return self.gain(np.arange(self.n_failed + 1)[:, None], np.arange(self.n_correct + 1)).ravel()


def _cut_by_cut(keys: IntArray, subsets: Sequence[_Subset]) -> FloatArray:
    """Return the gains (S, F) that ``best_gains`` looks up, computed from sorted keys (F, n)."""
    from lightning_failures.stats.kernels.gain import TIE

    code = keys[:, :-1].astype(np.uint32)  # the lower half
    bits = (keys >> 32).astype(np.int32)
    value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    cut = value[:, 1:] > value[:, :-1] + TIE
    best = []
    for subset in subsets:
        failures_below = np.cumsum(subset.failed[code], axis=1)
        successes_below = np.cumsum(subset.correct[code], axis=1)
        gains = np.where(cut, subset.gain(failures_below, successes_below), 0.0)
        best.append(gains.max(axis=1, initial=0.0))
    return np.stack(best)


def _x_log_x(x: NDArray[Any]) -> FloatArray:
    """Return x * log2(x), and 0 for 0."""
    return np.asarray(x * np.log2(np.maximum(x, np.finfo(np.float64).tiny)))
