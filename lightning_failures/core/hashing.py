"""Hashes of integers and of rows that are the same on every machine and in every version."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray


def stable_hash(ids: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint64]:
    """Hash each integer on its own (SplitMix64), so that the value of an id does not depend on the other ids."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def row_hashes(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Hash the bytes of each row: 63 bits of XXH3, so that exactly equal rows are found in one pass.

    Args:
        rows: (n, D) of any dtype.

    Returns:
        (n,) int64, never negative.

    >>> hashes = row_hashes(np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]))
    >>> bool(hashes[0] == hashes[2]), bool(hashes[0] == hashes[1])
    (True, False)
    """
    contiguous = np.ascontiguousarray(rows)
    hashes = (xxhash.xxh3_64_intdigest(row) >> 1 for row in contiguous)
    return np.fromiter(hashes, dtype=np.int64, count=len(contiguous))
