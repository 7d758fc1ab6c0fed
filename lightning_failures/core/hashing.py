"""A hash of integers that is the same on every machine and in every version."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stable_hash(ids: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint64]:
    """Hash each integer on its own (SplitMix64), so that the value of an id does not depend on the other ids."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
