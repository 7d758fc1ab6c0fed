"""Random labellings for permutation tests: groups with failures are mapped to groups drawn without replacement."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled


@compiled
def scatter_failures(
    outcome: Any, starts: Any, sizes: Any, place: Any, groups: Any, pool_starts: Any, failing: Any, seed: Any, out: Any
) -> None:
    """Fill each row of ``out`` with one permuted labelling.

    Args:
        outcome: (n,) uint8, 1 for a failure, group by group.
        starts: (G,) int64, the start of each group in ``outcome``.
        sizes: (G,) int64, the size of each group.
        place: (n,) int64, the column of ``out`` of each entry of ``outcome``.
        groups: (G,) int64, the groups pool by pool, in each pool those with failures first.
        pool_starts: (Q + 1,) int64, the start of each pool in ``groups``.
        failing: (Q,) int64, the number of groups with failures in each pool.
        seed: uint64, the state of the random number generator.
        out: (P, n) uint8 zeros, written.
    """
    state = np.uint64(seed)
    target = groups.copy()
    for p in range(len(out)):
        for q in range(len(failing)):
            first, last = pool_starts[q], pool_starts[q + 1]
            for k in range(failing[q]):  # the first steps of a Fisher-Yates shuffle
                state += np.uint64(0x9E3779B97F4A7C15)
                x = state  # SplitMix64
                x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                x ^= x >> np.uint64(31)
                left = np.uint64(last - first - k)
                other = first + k + np.int64(((x >> np.uint64(32)) * left) >> np.uint64(32))
                taker = target[other]
                target[other] = target[first + k]
                target[first + k] = taker
                source = groups[first + k]
                size, there = sizes[source], sizes[taker]
                if size == there == 1:
                    out[p, place[starts[taker]]] = 1
                    continue
                for t in range(there):
                    out[p, place[starts[taker] + t]] = outcome[starts[source] + t * size // there]
