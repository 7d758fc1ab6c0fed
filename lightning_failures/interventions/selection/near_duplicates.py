"""Detection of near-duplicates: images whose embeddings have nearly the same direction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_rows, unit_vectors
from lightning_failures.core.hashing import row_hashes
from lightning_failures.errors import DataError

_PAIRS_AT_ONCE = 1 << 22


def rows_near(embeddings: Any, others: Iterable[Any], *, similarity: float, name: str = "others") -> NDArray[np.bool_]:
    """Return which rows (n, D) are near-duplicates of another row, (n,) bool.

    Args:
        embeddings: (n, D) float.
        others: Blocks (m, D) of other embeddings; one block is in memory at a time.
        similarity: Cosine above which two rows are near-duplicates; at 1 only rows that are exactly equal are.
        name: Name of the other embeddings in messages.

    Raises:
        DataError: Embeddings that are not two-dimensional, not finite, or of different lengths.

    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> rows_near(rows, [[[0.1, 1.0]]], similarity=0.99).tolist(), rows_near(rows, [rows[:1]], similarity=1).tolist()
    ([False, True], [True, False])
    """
    rows = as_rows(embeddings, "embeddings").astype(np.float32)
    unit, hashes = unit_vectors(rows), row_hashes(rows)
    found = np.zeros(len(rows), dtype=np.bool_)
    size = max(1, _PAIRS_AT_ONCE // max(len(rows), 1))
    for block in others:
        matrix = as_rows(block, name)
        if matrix.shape[1] != rows.shape[1]:
            raise DataError(f"{name} must have {rows.shape[1]} dimensions, got {matrix.shape[1]}")
        for start in range(0, len(matrix), size):
            some = matrix[start : start + size].astype(np.float32)
            if similarity < 1:
                found |= (unit @ unit_vectors(some).T > similarity).any(axis=1)
            else:
                found |= np.isin(hashes, row_hashes(some))
    return found


def usual_similarity(embeddings: Any, *, least: float, share: float = 0.01, most_rows: int = 2000) -> float:
    """Return the cosine that only a small share of different images exceeds with their nearest neighbour.

    An encoder that knows little about its images maps all of them close together, and a fixed cosine would then take
    most images for near-duplicates.

    Args:
        embeddings: (N, D) float, of images of which few are near-duplicates. Equal rows count once.
        least: Lower limit of the result.
        share: Share of the images that exceed the result.
        most_rows: Number of rows that are compared, evenly spaced.

    >>> usual_similarity(np.eye(4), least=0.9)
    0.9
    """
    rows = as_rows(embeddings, "embeddings")
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), most_rows)).astype(np.int64)].astype(np.float32)
    rows = rows[np.unique(row_hashes(rows), return_index=True)[1]]
    if len(rows) < 2:
        return least
    unit = unit_vectors(rows)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1.0)
    return min(max(float(np.quantile(cosines.max(axis=1), 1 - share)), least), 1.0)


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
    is_near_training = rows_near(unit, training, similarity=similarity, name="training embeddings")

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
