"""Quadratic forms of many subsets: the permutation statistic on the Gram matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled

_ALIGNED = np.uint64(2**64 - 16)


@compiled
def subset_forms(matrix: Any, subsets: Any, out: Any, sizes: Any) -> None:
    """Set ``out[p]`` to u'Ku for each row u of ``subsets``.

    The rows of K that u selects are summed, each only to the right of its diagonal. If u selects a third of the rows,
    this takes a sixth of the additions of a matrix product.

    Args:
        matrix: (n, m) float32, symmetric in its first n columns; m is n rounded up to a multiple of 16.
        subsets: (P, n) uint8, 0 or 1.
        out: (P,) float32, written.
        sizes: (P,) int64, written: the number of ones.
    """
    n, width = matrix.shape
    total = np.zeros(width, np.float32)
    chosen = np.zeros(n + 1, np.uint64)
    for p in range(len(subsets)):
        count = 0
        for i in range(n):
            chosen[count] = i
            count += subsets[p, i]
        total[:] = 0
        above, diagonal = np.float32(0), np.float32(0)
        q = 0
        while q + 4 <= count:
            a, b, c, d = chosen[q], chosen[q + 1], chosen[q + 2], chosen[q + 3]
            above += (total[a] + total[b]) + (total[c] + total[d]) + (matrix[a, b] + matrix[a, c])
            above += (matrix[a, d] + matrix[b, c]) + (matrix[b, d] + matrix[c, d])
            diagonal += (matrix[a, a] + matrix[b, b]) + (matrix[c, c] + matrix[d, d])
            for t in range(d & _ALIGNED, np.uint64(width)):  # columns left of d are not read again
                total[t] += (matrix[a, t] + matrix[b, t]) + (matrix[c, t] + matrix[d, t])
            q += 4
        while q < count:
            a = chosen[q]
            above += total[a]
            diagonal += matrix[a, a]
            for t in range(a & _ALIGNED, np.uint64(width)):
                total[t] += matrix[a, t]
            q += 1
        out[p], sizes[p] = 2 * above + diagonal, count
