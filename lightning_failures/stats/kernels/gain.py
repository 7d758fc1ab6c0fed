"""Two passes over features for the information gain: pack value and label into one integer; evaluate every cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled

_TILE = 16  # floats in a cache line
TIE = np.float32(1e-7)  # scikit-learn's trees do not split between closer values
_LOW = 0xFFFFFFFF


@compiled
def pack(x: Any, code: Any, first: int, keys: Any) -> None:
    """Write the features from ``first`` on as rows of integers that sort like (value, code).

    The bits of a float32, read as an integer, keep its order if the lower 31 bits of negative numbers are flipped.

    Args:
        x: (n, D) float32, C-contiguous.
        code: (n,) int64 in [0, 2^32).
        first: Index of the feature in the first row of ``keys``.
        keys: (F, n) int64, written: the value in the upper half, the code in the lower half.
    """
    features, n = keys.shape
    for tile in range(0, features, _TILE):
        for i in range(n):
            for j in range(tile, min(tile + _TILE, features)):
                bits = np.int64(np.float32(x[i, first + j]).view(np.int32))
                keys[j, i] = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | code[i]


@compiled
def best_gains(keys: Any, tables: Any, start: Any, step: Any, best: Any) -> None:
    """Find the highest gain of a cut of each feature, for each subset of the examples, in one pass per subset.

    Args:
        keys: (F, n) int64 keys of :func:`pack`, each row sorted.
        tables: (T,) float64, the tables of all subsets one after the other: the gain of a cut by the numbers of
            failures and successes below it.
        start: (S,) int64, the cell of subset s for a cut without examples below it.
        step: (S, codes) int64, the number of cells by which an example of each code advances; 0 outside the subset.
        best: (S, F) float64, written.
    """
    features, n = keys.shape
    code = np.empty(n, np.int64)
    cut = np.empty(n, np.float64)  # 1 where a cut below the example is allowed
    for j in range(features):
        limit = np.float32(0)
        for i in range(n):
            code[i] = keys[j, i] & _LOW
            bits = np.int32(keys[j, i] >> 32)
            value = np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
            cut[i] = 1.0 if value > limit else 0.0
            limit = value + TIE
        for s in range(len(start)):
            cell = start[s]
            most = 0.0
            for i in range(n):
                gain = tables[cell] * cut[i]
                most = gain if gain > most else most
                cell += step[s, code[i]]
            best[s, j] = most
