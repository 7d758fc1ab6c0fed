"""Detection of near-duplicates: images whose embeddings have nearly the same direction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_rows, unit_vectors
from lightning_failures.errors import DataError

_PAIRS_AT_ONCE = 1 << 22


def distinct_rows(
    embeddings: Any, k: int, *, similarity: float, training: Iterable[Any] = ()
) -> tuple[NDArray[np.int64], int]:
    """Take the first k rows that are no near-duplicates of a training row or of a row taken before.

    Args:
        embeddings: (n, D) float, the best candidate first.
        k: Number of rows to take.
        similarity: Cosine above which two rows are near-duplicates.
        training: Blocks (m, D) of training embeddings; one block is in memory at a time.

    Returns:
        The rows taken, (at most k,) int64 ascending, and the number of rows skipped before the last of them (or before
        the end, if there are fewer than k).

    Raises:
        DataError: Embeddings that are not two-dimensional, not finite, or of different lengths.

    >>> rows = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [1.0, 1.0]])
    >>> distinct_rows(rows, 2, similarity=0.99)
    (array([0, 2]), 1)
    >>> distinct_rows(rows, 2, similarity=0.99, training=[[[0.0, 2.0]]])
    (array([0, 3]), 2)
    """
    unit = unit_vectors(as_rows(embeddings, "embeddings").astype(np.float32))
    is_near_training = np.zeros(len(unit), dtype=np.bool_)
    size = max(1, _PAIRS_AT_ONCE // max(len(unit), 1))
    for block in training:
        others = as_rows(block, "training embeddings")
        if others.shape[1] != unit.shape[1]:
            raise DataError(f"training embeddings must have {unit.shape[1]} dimensions, got {others.shape[1]}")
        for start in range(0, len(others), size):
            is_near_training |= (
                unit @ unit_vectors(others[start : start + size].astype(np.float32)).T > similarity
            ).any(axis=1)

    taken: list[int] = []
    skipped = 0
    for row in range(len(unit)):
        if len(taken) == k:
            break
        if is_near_training[row] or (unit[taken] @ unit[row] > similarity).any():
            skipped += 1
        else:
            taken.append(row)
    return np.array(taken, dtype=np.int64), skipped
