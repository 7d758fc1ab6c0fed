"""Two passes over features, before and after they are sorted: pack value and label into one integer; try every cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled

_TILE = 16  # floats in a cache line
TIE = np.float32(1e-7)  # scikit-learn's trees do not split between values that are closer
_LOW = 0xFFFFFFFF


@compiled
def pack(x: Any, code: Any, first: int, keys: Any) -> None:
    """Write the features ``first ...`` as rows of integers that sort like (value, code).

    A float32 keeps its order when its bits are read as an integer, with the lower ones flipped if it is negative.

    Args:
        x: (n, D) float32, C-contiguous.
        code: (n,) int64 in [0, 2^32).
        first: The feature that the first row of ``keys`` holds.
        keys: (F, n) int64, written: value in the upper half, code in the lower.
    """
    features, n = keys.shape
    for tile in range(0, features, _TILE):
        for i in range(n):
            for j in range(tile, min(tile + _TILE, features)):
                bits = np.int64(np.float32(x[i, first + j]).view(np.int32))
                keys[j, i] = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | code[i]


@compiled
def best_gains(keys: Any, tables: Any, start: Any, step: Any, best: Any) -> None:
    """Walk each sorted feature once for each subset of the examples; keep the highest gain of a cut.

    Args:
        keys: (F, n) int64, as :func:`pack` made them, each row sorted.
        tables: (T,) float64, for every subset the gain of a cut by what lies below it; cell after cell.
        start: (S,) int64, the cell of subset s in which nothing lies below.
        step: (S, codes) int64, by how many cells an example moves on; 0 if it is not in the subset.
        best: (S, F) float64, written.
    """
    features, n = keys.shape
    code = np.empty(n, np.int64)
    cut = np.empty(n, np.float64)  # 1 where one may cut below the example
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
