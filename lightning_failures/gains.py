"""What a feature is worth to a failure tree: the information gain of its best split, exact, for all features at once.

Every feature is sorted once. The gain of a cut depends only on how many failures and successes lie below it, so it is
looked up in a table, and leaving a fold out is another walk along the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.arrays import as_mask, as_matrix

__all__ = ["fold_gains", "information_gain"]

_KEYS_AT_ONCE = 2**17  # what is sorted at once stays in the processor's cache
_MOST_CELLS = 2**24  # of tables, 128 MiB; beyond it (several thousand examples) gains are computed cut by cut


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
    from lightning_failures.kernels.gain import pack

    n, width = x.shape
    best = np.zeros((len(min_leaf), width))
    if not 0 < failed.sum() < n:
        return best
    x = np.ascontiguousarray(x)
    code = failed.astype(np.int64) if fold is None else 2 * fold + failed
    walk = _walk(code, min_leaf)
    block = max(1, min(width, _KEYS_AT_ONCE // n))
    keys = np.empty((block, n), dtype=np.int64)
    for first in range(0, width, block):
        rows = keys[: width - first]
        pack(x, code, first, rows)
        rows.sort(axis=1)
        walk(rows, best[:, first : first + block])
    return best


def _walk(code: NDArray[np.int64], min_leaf: Sequence[int]) -> Callable[[NDArray[np.int64], NDArray[np.float64]], None]:
    """Prepare what writes (S, F) best gains of sorted keys (F, n): all examples, then each fold left out."""
    from lightning_failures.kernels.gain import TIE, best_gains

    fold_of, failed_of = np.divmod(np.arange(code.max() + 1), 2)  # what each code stands for
    kept = np.arange(-1, len(min_leaf) - 1)[:, None] != fold_of  # (S, codes)
    sizes = np.bincount(code, minlength=len(fold_of))
    n_failed, n_correct = kept @ (sizes * failed_of), kept @ (sizes * (1 - failed_of))
    subsets = list(zip(n_failed.tolist(), n_correct.tolist(), min_leaf, strict=True))
    cells = (n_failed + 1) * (n_correct + 1)
    if cells.sum() > _MOST_CELLS:

        def cut_by_cut(keys: NDArray[np.int64], best: NDArray[np.float64]) -> None:
            codes = keys.astype(np.uint32)  # the lower half
            bits = (keys >> 32).astype(np.int32)
            value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
            cut = value[:, 1:] > value[:, :-1] + TIE
            for s, (failures, successes, least) in enumerate(subsets):
                failed_below = np.cumsum((kept[s] * failed_of)[codes[:, :-1]], axis=1)
                below = np.cumsum(kept[s].astype(np.int64)[codes[:, :-1]], axis=1)
                gain = _gain(failed_below, below - failed_below, failures, successes, least)
                best[s] = np.where(cut, gain, 0.0).max(axis=1, initial=0.0)

        return cut_by_cut

    tables = np.concatenate(
        [_gain(np.arange(f + 1)[:, None], np.arange(c + 1), f, c, least).ravel() for f, c, least in subsets]
    )
    step = kept * np.where(failed_of, n_correct[:, None] + 1, 1)
    return lambda keys, best: best_gains(keys, tables, np.cumsum(cells) - cells, step, best)


def _gain(
    failures: NDArray[np.int64], successes: NDArray[np.int64], n_failed: int, n_correct: int, min_leaf: int
) -> NDArray[np.float64]:
    """Gain of a cut with so many failures and successes on one side; 0 where a side has fewer than ``min_leaf``."""
    size = failures + successes
    if n_failed == 0 or n_correct == 0:
        return np.zeros(size.shape)
    weight = n_correct / n_failed  # both classes weigh n_correct in all, so the parent has an entropy of one bit
    of_failed, of_correct = _x_log_x(np.arange(n_failed + 1) * weight), _x_log_x(np.arange(n_correct + 1.0))
    of_failed, of_correct = of_failed + of_failed[::-1], of_correct + of_correct[::-1]
    side = failures * weight + successes
    loss = _x_log_x(side) + _x_log_x(2 * n_correct - side) - of_failed[failures] - of_correct[successes]
    enough = (size >= min_leaf) & (size <= n_failed + n_correct - min_leaf)
    return np.where(enough, 1 - loss / (2 * n_correct), 0.0)


def _x_log_x(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(x * np.log2(np.maximum(x, np.finfo(np.float64).tiny)))
