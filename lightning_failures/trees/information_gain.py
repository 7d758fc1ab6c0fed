"""Information gain of the best split of each feature, exact, and the features with the highest gains.

The gain of a cut depends only on the numbers of failures and successes below it. Every feature is sorted once, and
leaving out a fold takes one more pass over the same order. Where only the best features are asked for, most features
are not even sorted: they are counted in bins, and the counts bound their gains (``bound_gains``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_mask, as_matrix
from lightning_failures.core.types import BoolArray, FloatArray, IntArray

_KEYS_AT_ONCE = 2**20  # a block of features that is packed at once: the values of an example are neighbours
_PLACES_AT_ONCE = 2**20  # a block of features whose bins are counted
_TILE = 16  # features that are counted at once: their counts stay in the processor's cache
_MIN_PRUNED = 64  # with fewer examples, or fewer features, every feature is sorted
_SAMPLE = 128  # examples, at most, from which the bins of a feature are placed
_OCTAVES = 5  # of bins on either side of the centre
_MIN_BITS, _MAX_BITS = 3, 7  # bins of an octave, as powers of two
_MARGIN = 1e-3  # relative, for the rounding of bounds in single precision


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
    problem = _Problem.of(failed, fold, min_leaf)
    gains = np.zeros((len(min_leaf), x.shape[1]))
    wanted = np.repeat(problem.has_both[:, None], x.shape[1], axis=1)
    problem.add_gains(x, np.arange(x.shape[1]), wanted, gains)
    return gains


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
    n, width = x.shape
    problem = _Problem.of(failed, fold, min_leaf)
    if not problem.has_both.any() or n < _MIN_PRUNED or width < max(_MIN_PRUNED, 2 * top):
        gains = fold_gains(x, failed, fold, min_leaf)
        return [_ranked(row, np.arange(width), top * both) for row, both in zip(gains, problem.has_both, strict=True)]

    # the features that seem best give the gain that the others must be able to reach
    seeming, bound = problem.bounds(x)
    seem_best = np.sort(np.argpartition(-seeming, 2 * top - 1)[: 2 * top])
    gains = np.zeros((len(min_leaf), width))
    known = np.zeros((len(min_leaf), width), dtype=np.bool_)
    known[:, seem_best] = problem.has_both[:, None]
    problem.add_gains(x, seem_best, known, gains)
    to_reach = np.partition(gains[:, seem_best], -top, axis=1)[:, -top]
    open_ = ~known & (bound * (1 + _MARGIN) >= to_reach[:, None]) & problem.has_both[:, None]
    problem.add_gains(x, np.flatnonzero(open_.any(axis=0)), open_, gains)
    known |= open_
    return [_ranked(row, np.flatnonzero(known[s]), top if problem.has_both[s] else 0) for s, row in enumerate(gains)]


def _ranked(gains: FloatArray, features: IntArray, top: int) -> IntArray:
    """Return the best of some features, by their gain, then their index."""
    return features[np.argsort(-gains[features], kind="stable")[:top]]


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

    def add_gains(self, x: NDArray[Any], features: IntArray, wanted: BoolArray, gains: FloatArray) -> None:
        """Write the exact gains of some features into ``gains`` (S, D), where ``wanted`` (S, D) says so."""
        from lightning_failures.stats.kernels.gain import best_gains

        n = len(x)
        if n < 2:
            return
        numbers = np.arange(1, n + 1)
        logs = np.concatenate([[0.0], numbers * np.log2(numbers)])
        block = max(1, min(len(features), _KEYS_AT_ONCE // n))
        keys = np.empty((block, n), dtype=np.int64)
        counts = (self.member, self.n_failed, self.n_correct, self.min_leaf)
        for first in range(0, len(features), block):
            chosen = features[first : first + block]
            rows = keys[: len(chosen)]
            sort_features(x, chosen, self.code, rows)
            found = np.zeros((len(self.min_leaf), len(chosen)))
            best_gains(rows, *counts, wanted[:, chosen], logs, found)
            gains[:, chosen] = np.where(wanted[:, chosen], found, gains[:, chosen])

    def bounds(self, x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return about the gain (D,) of each feature on all examples, and upper bounds (S, D) of the gains."""
        from lightning_failures.stats.kernels.gain import bound_gains

        n, width = x.shape
        bits = max(_MIN_BITS, min(_MAX_BITS, round(math.log2(n) / 2 - 0.5)))  # the more examples, the finer
        bins = 2 * _OCTAVES * 2**bits + 2
        tiles = max(1, min(-(-width // _TILE), _PLACES_AT_ONCE // (n * _TILE)))
        place = np.empty((tiles, n, _TILE), dtype=np.uint16)
        counts = np.empty((_TILE, self.member.shape[1], bins), dtype=np.uint16 if n < 2**16 else np.uint32)
        seeming, bound = np.empty(width, dtype=np.float32), np.empty((len(self.min_leaf), width), dtype=np.float32)
        subsets = (self.n_failed, self.n_correct, self.min_leaf)
        for start in range(0, width, tiles * _TILE):
            part = slice(start, start + tiles * _TILE)
            in_place = _is_plain(x)
            bound_gains(
                x if in_place else np.ascontiguousarray(x[:, part], dtype=np.float32),
                start if in_place else 0,
                self.code,
                *subsets,
                *_place_bins(x[:, part], bins),
                place,
                counts,
                seeming[part],
                bound[:, part],
            )
        return seeming, bound


def sort_features(x: NDArray[Any], features: IntArray, code: IntArray, keys: IntArray) -> None:
    """Write some features as rows of integers in ascending order, first by value, then by the code of the example.

    Args:
        x: (n, D), any float dtype.
        features: (F,) int64.
        code: (n,) int64 in [0, 2^32).
        keys: (F, n) int64, written, see :func:`~lightning_failures.stats.kernels.gain.pack`.
    """
    from lightning_failures.stats.kernels.gain import pack

    if _is_plain(x):
        pack(x, features, code, keys)
    else:
        pack(np.ascontiguousarray(x[:, features], dtype=np.float32), np.arange(len(features)), code, keys)
    keys.sort(axis=1)


def _is_plain(x: NDArray[Any]) -> bool:
    """Return whether compiled functions read the features as they are."""
    return x.dtype == np.float32 and x.flags.c_contiguous


def _place_bins(x: NDArray[Any], bins: int) -> tuple[NDArray[Any], ...]:
    """Place the bins of features (n, D) by the quantiles of a few examples.

    The centre of a feature is its smallest value if that is frequent, such as 0 behind a ReLU, else the median. The
    first octave reaches from there to a quantile near the end of the distribution, the next ones to its end. A feature
    that needs few octaves, such as one that is bounded, has the more bins in each.

    Returns:
        Centre (D,) float32, inverse width (2, D) float32 of the first octave below it (negative) and above it, the
        number (D,) int32 of bits of a float that a bin leaves open, and the number (D,) int32 of the bin at the centre.
    """
    size = min(_SAMPLE, len(x) // 8 + 24)
    values = np.ascontiguousarray(x[np.arange(size) * len(x) // size].T, dtype=np.float32)
    places = [0, size // 4, size // 2, size - 1 - size // 4, size - 1]
    values.sort(axis=1)
    lowest, low, middle, high, highest = values[:, places].T
    one_sided = lowest == low
    centre = np.where(one_sided, lowest, middle)
    near, far = np.abs(np.stack([low, high]) - centre), np.abs(np.stack([lowest, highest]) - centre)
    reach = np.clip(np.where(near > 0, near, far), np.float32(1e-30), np.float32(1e30))
    inverse = 1 / reach
    inverse[0] *= -1

    # as many bins for each octave as all octaves leave, and the rest at either end
    octaves = np.ceil(np.log2(far / reach + 1)).clip(1, _OCTAVES).astype(np.int32)
    octaves[0, one_sided] = 0
    bits = np.log2((bins - 2) / octaves.sum(axis=0)).astype(np.int32)
    rest = bins - 1 - (octaves.sum(axis=0) << bits)
    at_centre = np.where(one_sided, 1, (octaves[0] << bits) + rest // 2).astype(np.int32)
    return centre, inverse, 23 - bits, at_centre
