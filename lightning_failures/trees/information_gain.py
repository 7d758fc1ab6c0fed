"""What a feature is worth to a failure tree: the information gain of its best split, exact, for all features at once.

Every feature is sorted once. The gain of a cut depends only on how many failures and successes lie below it, so it is
looked up in a table, and leaving a fold out is another walk along the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_mask, as_matrix

_KEYS_AT_ONCE = 2**17  # what is sorted at once stays in the processor's cache
_MOST_CELLS = 2**24  # of tables, 128 MiB; beyond it, or if there are fewer cuts, gains are computed cut by cut


def information_gain(features: Any, failed: Any, *, min_leaf: int = 1) -> NDArray[np.float64]:
    """Return for every feature the information gain of its best split, in bits, with classes weighted to balance.

    It is what a depth-1 ``DecisionTreeClassifier(criterion="entropy", class_weight={0: 1, 1: n_correct / n_failed})``
    on the feature alone gains.

    Args:
        features: (n, D), any float dtype.
        failed: (n,) bool.
        min_leaf: Splits that leave fewer examples on a side do not count.

    Returns:
        (D,) float64 in [0, 1]; 0 for a constant feature, and everywhere if there are no failures or no successes.

    Raises:
        DataError: Shapes that do not match, values that are not finite.

    >>> information_gain([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]], [False, True, True])
    array([1., 0.])
    """
    x = as_matrix(features, "features").astype(np.float32, copy=False)
    fails = as_mask(failed, "failed", len(x))
    return np.asarray(fold_gains(x, fails, None, [min_leaf])[0])


def fold_gains(
    x: NDArray[np.float32], failed: NDArray[np.bool_], fold: NDArray[np.int64] | None, min_leaf: Sequence[int]
) -> NDArray[np.float64]:
    """Information gain of each feature on all examples, then without fold 0, without fold 1, ...

    Values closer than 1e-7 to a neighbour among *all* examples are one value in every fold.

    Args:
        x: (n, D).
        failed: (n,) bool.
        fold: (n,) int from 0 to K - 1; None for K = 0.
        min_leaf: K + 1 least sizes of a side.

    Returns:
        (K + 1, D) float64.
    """
    from lightning_failures.stats.kernels.gain import best_gains, pack

    n, width = x.shape
    best = np.zeros((len(min_leaf), width))
    if not 0 < failed.sum() < n:
        return best
    x = np.ascontiguousarray(x)
    code = failed.astype(np.int64) if fold is None else 2 * fold + failed
    sizes = np.bincount(code)
    subsets = [_Subset.without(k - 1, sizes, least) for k, least in enumerate(min_leaf)]
    cells = np.array([subset.cells for subset in subsets])
    by_table = cells.sum() <= min(_MOST_CELLS, len(subsets) * x.size)
    if by_table:
        tables, step = np.concatenate([s.table() for s in subsets]), np.stack([s.step for s in subsets])

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
    """The examples outside a fold, or all of them. Those of one fold and outcome share a code, 2 * fold + failed."""

    failed: NDArray[np.int64]  # (codes,) how many failures an example of each code adds: 0 or 1
    correct: NDArray[np.int64]  # (codes,) likewise
    n_failed: int
    n_correct: int
    min_leaf: int

    @classmethod
    def without(cls, fold: int, sizes: NDArray[np.int64], min_leaf: int) -> _Subset:
        """Leave out a fold, none if it is -1, of ``sizes`` (codes,) examples."""
        fold_of, failed = np.divmod(np.arange(len(sizes)), 2)
        kept = (fold_of != fold).astype(np.int64)
        failed, correct = kept * failed, kept * (1 - failed)
        return cls(failed, correct, int(failed @ sizes), int(correct @ sizes), min_leaf)

    def gain(self, failures: NDArray[np.int64], successes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Gain of a cut with so many failures and successes on one side; 0 if a side has fewer than ``min_leaf``."""
        size = failures + successes
        if self.n_failed == 0 or self.n_correct == 0:
            return np.zeros(size.shape)
        weight = self.n_correct / self.n_failed  # both classes weigh n_correct: the parent has an entropy of one bit
        of_failed = _x_log_x(np.arange(self.n_failed + 1) * weight)
        of_correct = _x_log_x(np.arange(self.n_correct + 1.0))
        of_failed, of_correct = of_failed + of_failed[::-1], of_correct + of_correct[::-1]
        side = failures * weight + successes
        loss = _x_log_x(side) + _x_log_x(2 * self.n_correct - side) - of_failed[failures] - of_correct[successes]
        enough = (size >= self.min_leaf) & (size <= self.n_failed + self.n_correct - self.min_leaf)
        return np.where(enough, 1 - loss / (2 * self.n_correct), 0.0)

    @property
    def cells(self) -> int:
        """Size of the table."""
        return (self.n_failed + 1) * (self.n_correct + 1)

    @property
    def step(self) -> NDArray[np.int64]:
        """(codes,) by how many cells of the table an example moves on."""
        return self.failed * (self.n_correct + 1) + self.correct

    def table(self) -> NDArray[np.float64]:
        """Gains of all cuts: (cells,), one row for each number of failures."""
        return self.gain(np.arange(self.n_failed + 1)[:, None], np.arange(self.n_correct + 1)).ravel()


def _cut_by_cut(keys: NDArray[np.int64], subsets: Sequence[_Subset]) -> NDArray[np.float64]:
    """What ``best_gains`` looks up, computed: (F, n) sorted keys -> (S, F)."""
    from lightning_failures.stats.kernels.gain import TIE

    code = keys[:, :-1].astype(np.uint32)  # the lower half
    bits = (keys >> 32).astype(np.int32)
    value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    cut = value[:, 1:] > value[:, :-1] + TIE
    best = []
    for subset in subsets:
        below = (np.cumsum(of[code], axis=1) for of in (subset.failed, subset.correct))
        best.append(np.where(cut, subset.gain(*below), 0.0).max(axis=1, initial=0.0))
    return np.stack(best)


def _x_log_x(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(x * np.log2(np.maximum(x, np.finfo(np.float64).tiny)))
