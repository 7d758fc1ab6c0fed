"""Diverse selection: rows that lie far from each other, so that a budget is not spent on images that look alike.

Source: Gonzalez, Clustering to minimize the maximum intercluster distance, 1985: farthest-point traversal, whose radius
is at most twice that of the best k centres. Used for batches to label by Sener and Savarese, Active learning for
convolutional neural networks: a core-set approach, ICLR 2018 (k-centre-greedy).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.core.arrays import as_rows, unit_vectors
from lightning_failures.core.types import IntArray
from lightning_failures.errors import DataError


def spread(embeddings: Any, k: int, first: int = 0) -> IntArray:
    """Return k rows that lie far from each other, by farthest-point traversal with the cosine distance.

    Each row is the one whose nearest selected row is farthest away; of equal ones, the first. Memory does not grow
    with k, time does: k products of the n rows with one.

    Args:
        embeddings: (n, D) float.
        k: Number of rows to select.
        first: The row to begin with, for instance the hardest.

    Returns:
        (min(k, n),) int64, in the order of selection.

    Raises:
        DataError: Embeddings that are not two-dimensional or not finite, or ``first`` is no row.

    >>> rows = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> spread(rows, 3).tolist()
    [0, 3, 2]
    """
    unit = unit_vectors(as_rows(embeddings, "embeddings").astype(np.float32))
    k = min(k, len(unit))
    if k < 1:
        return np.empty(0, dtype=np.int64)
    if not 0 <= first < len(unit):
        raise DataError(f"spread: first must be one of {len(unit)} rows, got {first}.")
    selected = np.empty(k, dtype=np.int64)
    nearest = np.full(len(unit), -np.inf, dtype=np.float32)  # cosine with the nearest selected row
    row = first
    for i in range(k):
        selected[i] = row
        np.maximum(nearest, unit @ unit[row], out=nearest)
        nearest[row] = np.inf  # never twice, whatever rounding says
        row = int(np.argmin(nearest))
    return selected
