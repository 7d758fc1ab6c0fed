"""Information gain of the best split of each feature, exact, and the features with the highest gains.

The gain of a cut depends only on the numbers of failures and successes below it. Every feature is sorted once, and
leaving out a fold takes one more pass over the same order. Where only the best features are asked for, the counts at
some positions bound the gains of a feature, and few gains are computed. Sorting is the smaller part: reading an order
that was kept from an earlier epoch would take as long.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_mask, as_matrix
from lightning_failures.core.types import BoolArray, FloatArray, IntArray

_KEYS_AT_ONCE = 2**19  # a block of features that is sorted at once: its keys stay in the processor's cache
_MAX_SHORT_CODES = 2**16
_BLOCK = 0.6  # length of a block of cuts, in standard deviations by chance of the difference between two shares


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
    x = as_matrix(features, "features")
    fails = as_mask(failed, "failed", len(x))
    return np.asarray(fold_gains(x, fails, None, [min_leaf])[0])


def fold_gains(x: NDArray[Any], failed: BoolArray, fold: IntArray | None, min_leaf: Sequence[int]) -> FloatArray:
    """Return the information gain of each feature on all examples, then without fold 0, without fold 1, and so on.

    Values closer than 1e-7 to a neighbour among *all* examples count as one value in every fold.

    Args:
        x: (n, D), any float dtype; compared in float32.
        failed: (n,) bool.
        fold: (n,) int from 0 to K - 1; None for K = 0.
        min_leaf: K + 1 minimum sizes of a side.

    Returns:
        (K + 1, D) float64.
    """
    return _Problem.of(failed, fold, min_leaf).gains(x)


def best_features(
    x: NDArray[Any], failed: BoolArray, fold: IntArray | None, min_leaf: Sequence[int], top: int
) -> list[IntArray]:
    """Return the features with the highest gains of :func:`fold_gains`, best first, for each row of its result.

    Of features with equal gains the first comes first.

    Args:
        x: (n, D), any float dtype; compared in float32.
        failed: (n,) bool.
        fold: (n,) int from 0 to K - 1; None for K = 0.
        min_leaf: K + 1 minimum sizes of a side.
        top: Maximum number of features.

    Returns:
        K + 1 arrays of indices, (min(top, D),) each; of no features where failures or successes are missing.
    """
    top = min(top, x.shape[1])
    problem = _Problem.of(failed, fold, min_leaf)
    best = problem.best(x, top) if top and problem.has_both.any() else np.empty((len(min_leaf), 0), dtype=np.int64)
    return [row[: top * both] for row, both in zip(best, problem.has_both, strict=True)]


@dataclass(frozen=True)
class _Problem:
    """Examples, and their subsets: all of them, those outside fold 0, those outside fold 1, and so on.

    Attributes:
        code: (n,) int64, 2 * fold + failed.
        member: (S, codes) int64, 1 where the examples of a code belong to a subset.
        n_failed: (S,) int64, the number of failures in each subset.
        n_correct: (S,) int64, the number of successes in each subset.
        min_leaf: (S,) int64, the minimum size of a side.
    """

    code: IntArray
    member: IntArray
    n_failed: IntArray
    n_correct: IntArray
    min_leaf: IntArray

    @classmethod
    def of(cls, failed: BoolArray, fold: IntArray | None, min_leaf: Sequence[int]) -> _Problem:
        """Return the problem of all examples and of those without each fold."""
        code = failed.astype(np.int64) if fold is None else 2 * fold + failed
        folds = max(len(min_leaf) - 1, 1)
        sizes = np.bincount(code, minlength=2 * folds)
        fold_of, outcome = np.divmod(np.arange(len(sizes)), 2)
        member = (fold_of != np.arange(-1, len(min_leaf) - 1)[:, None]).astype(np.int64)
        counted = member * sizes
        return cls(code, member, counted @ outcome, counted @ (1 - outcome), np.array(min_leaf, dtype=np.int64))

    @property
    def has_both(self) -> BoolArray:
        """(S,) whether a subset has failures and successes."""
        return (self.n_failed > 0) & (self.n_correct > 0)

    def gains(self, x: NDArray[Any]) -> FloatArray:
        """Return the highest gain (S, D) of a cut of each feature."""
        from lightning_failures.stats.kernels.gain import best_gains

        found = np.zeros((len(self.min_leaf), x.shape[1]))
        for start, keys in self._sorted(x):
            part = found[:, start : start + len(keys)]
            best_gains(keys, self.member, self.n_failed, self.n_correct, self.min_leaf, _logs(len(x)), part)
        return found

    def best(self, x: NDArray[Any], top: int) -> IntArray:
        """Return the features with the highest gains (S, top), best first."""
        from lightning_failures.stats.kernels.top_gains import raise_best

        gains = np.full((len(self.min_leaf), top), -1.0)
        best = np.tile(np.arange(top), (len(self.min_leaf), 1))
        ends, logs = self._block_ends(), _logs(len(x))
        for start, keys in self._sorted(x):
            raise_best(keys, start, ends, self.member, self.n_failed, self.n_correct, self.min_leaf, logs, gains, best)
        return best

    def _sorted(self, x: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the first feature of each block of features, and the sorted keys of these."""
        from lightning_failures.stats.kernels.gain import pack_halves

        n, width = x.shape
        size = max(1, min(width, _KEYS_AT_ONCE // max(n, 1)))
        half = x.dtype == np.float16 and self.member.shape[1] <= _MAX_SHORT_CODES
        bits = np.ascontiguousarray(x).view(np.uint16) if half else x
        keys = np.empty((size, n), dtype=np.uint32 if half else np.int64)
        for start in range(0, width, size):
            rows = keys[: width - start]
            if half:
                pack_halves(bits, start, self.code, rows)
                rows.sort(axis=1)
            else:
                sort_features(x, np.arange(start, start + len(rows)), self.code, rows)
            yield start, rows

    def _block_ends(self) -> IntArray:
        """Return the positions at which blocks of cuts end, (E,) ascending.

        The share of the failures below a cut minus that of the successes varies by chance, least near the ends of a
        feature. A block is as long as keeps its bound a fraction of that away from the gains of its cuts.
        """
        n, least = len(self.code), max(int(self.min_leaf.min()), 1)
        scale = _BLOCK * math.sqrt(1 / max(int(self.n_failed[0]), 1) + 1 / max(int(self.n_correct[0]), 1))
        ends = [min(least, n)]
        while ends[-1] < n - least:
            step = round(scale * math.sqrt(ends[-1] * (n - ends[-1])))
            ends.append(min(ends[-1] + max(step, 1), n - least))
        return np.array([ends[0], *ends], dtype=np.int64)  # twice the first: an empty block holds the cut there


@functools.lru_cache(maxsize=4)
def _logs(n: int) -> FloatArray:
    """Return k log2(k) for k = 0 ... n."""
    numbers = np.arange(1, n + 1)
    return np.concatenate([[0.0], numbers * np.log2(numbers)])


def sort_features(x: NDArray[Any], features: IntArray, code: IntArray, keys: IntArray) -> None:
    """Write some features as rows of integers in ascending order, first by value, then by the code of the example.

    Args:
        x: (n, D), any float dtype.
        features: (F,) int64.
        code: (n,) int64 in [0, 2^32).
        keys: (F, n) int64, written, see :func:`~lightning_failures.stats.kernels.gain.pack`.
    """
    from lightning_failures.stats.kernels.gain import pack

    if x.dtype == np.float32 and x.flags.c_contiguous:
        pack(x, features, code, keys)
    else:
        pack(np.ascontiguousarray(x[:, features], dtype=np.float32), np.arange(len(features)), code, keys)
    keys.sort(axis=1)
