"""Folds and permutations that keep groups whole.

A group is one source: the frames of a video, the images of a patient, the renderings of one digit. Its examples are not
independent, so they share a fold, and a permutation moves them together. Exact copies of one image are one source too,
whether or not anyone knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.hashing import row_hashes, stable_hash
from lightning_failures.core.types import BoolArray, IntArray

_MIN_EXCHANGEABLE = 10  # groups of a size that change places only among themselves
_CELLS_AT_ONCE = 1 << 16  # a block of labellings that fits the processor's cache
_ROWS_AT_ONCE = 64  # of large classes more cells: a product with few labellings waits for memory
_MAX_CELLS = 1 << 22


def join_sources(sources: NDArray[np.generic], marks: IntArray) -> NDArray[np.generic]:
    """Join the sources of examples with equal marks; a source that is joined with two others joins all three.

    Args:
        sources: (n,) names of the sources, integers or strings.
        marks: (n,) int, equal for copies of one image.

    Returns:
        (n,) names: of joined sources the smallest. ``sources`` itself if there is nothing to join.

    >>> join_sources(np.array([0, 1, 2, 3, 3]), np.array([7, 8, 7, 9, 8])).tolist()
    [0, 1, 0, 1, 1]
    """
    order = np.argsort(marks, kind="stable")
    is_copy = marks[order[1:]] == marks[order[:-1]]
    if not is_copy.any():
        return sources
    names, member = np.unique(sources, return_inverse=True)
    one, other = member[order[:-1][is_copy]], member[order[1:][is_copy]]
    if (one == other).all():
        return sources
    smallest = np.arange(len(names))  # of the sources known to be joined with each; names are sorted
    while True:
        of_pair = np.minimum(smallest[one], smallest[other])
        before = smallest.copy()
        np.minimum.at(smallest, one, of_pair)
        np.minimum.at(smallest, other, of_pair)
        smallest = smallest[smallest]
        if np.array_equal(smallest, before):
            return np.asarray(names[smallest[member]])


def join_copies(sources: NDArray[np.generic], rows: NDArray[Any]) -> NDArray[np.generic]:
    """Join the sources of examples whose embeddings (n, D) are exactly equal; see :func:`join_sources`.

    >>> join_copies(np.arange(3), np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
    [0, 1, 0]
    """
    return join_sources(sources, row_hashes(rows))


def stratified_group_folds(
    failed: BoolArray, groups: NDArray[np.generic], *, folds: int = 2, seed: int = 0
) -> IntArray:
    """Assign whole groups to folds such that failures and successes are spread evenly.

    Groups are sorted by their failures, then their successes, then the hash of their name, and assigned in turn. Where
    every example is its own group, the counts of two folds differ by at most one, for failures and for successes. The
    order of the rows has no influence.

    Args:
        failed: (n,) bool.
        groups: (n,) names of the groups, integers or strings.
        folds: Number of folds.
        seed: Seed of the hash; another seed gives other folds.

    Returns:
        (n,) int64, the fold of each example, 0 ... folds - 1.

    >>> failed = np.array([True, True, False, False, False, False])
    >>> fold = stratified_group_folds(failed, np.arange(6), folds=2)
    >>> np.bincount(fold[failed]).tolist(), np.bincount(fold[~failed]).tolist()
    ([1, 1], [2, 2])
    """
    names, member = np.unique(groups, return_inverse=True)
    failures = np.bincount(member, weights=failed, minlength=len(names))
    successes = np.bincount(member, weights=~failed, minlength=len(names))
    codes = names if names.dtype.kind == "i" else np.arange(len(names))  # strings are hashed by their rank
    order = np.lexsort((stable_hash(codes, seed), -successes, -failures))
    fold_of_group = np.empty(len(names), dtype=np.int64)
    fold_of_group[order] = np.arange(len(names)) % folds
    return fold_of_group[member]


def permuted_outcomes(
    failed: BoolArray,
    groups: NDArray[np.generic],
    permutations: int,
    rng: np.random.Generator,
    *,
    strata: IntArray | None = None,
) -> Iterator[BoolArray]:
    """Draw labellings that permute whole groups.

    Groups change places only with groups of the same size, which is exact. Sizes that occur fewer than 10 times are
    pooled with the next larger sizes. Within such a pool a group takes over the *sequence of outcomes* of another one,
    stretched or shortened to its own size: the correlation inside groups is kept, and the number of failures varies a
    little.

    Args:
        failed: (n,) bool.
        groups: (n,) names of the groups.
        permutations: Number P of permutations.
        rng: The source of randomness.
        strata: (n,) int. Groups change places only within a stratum, that of the median row of the group. Default: one.

    Yields:
        (P_i, n) bool, blocks of bounded memory with P rows in total.

    >>> failed = np.array([True, False, True, True])
    >>> labellings, = permuted_outcomes(failed, np.array([0, 0, 1, 1]), 9, np.random.default_rng(0))
    >>> all(row in ([True, False, True, True], [True, True, True, False]) for row in labellings.tolist())
    True
    """
    from lightning_failures.stats.kernels.shuffle import scatter_failures

    # lay the rows out group by group
    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")
    sizes = np.bincount(member)
    starts = np.cumsum(sizes) - sizes
    has_failure = np.bincount(member[failed], minlength=len(sizes)) > 0

    # lay the groups out pool by pool, those with failures first
    pools = _pools(sizes, order, starts, strata)
    names, pool = np.unique(pools, return_inverse=True)
    by_pool = np.lexsort((~has_failure, pool))
    bounds = np.searchsorted(pool[by_pool], np.arange(len(names) + 1))
    failing = np.bincount(pool[has_failure], minlength=len(names))

    seed = rng.integers(2**63, dtype=np.uint64)
    n = max(len(failed), 1)
    size = max(1, _CELLS_AT_ONCE // n, min(_ROWS_AT_ONCE, _MAX_CELLS // n))
    for start in range(0, permutations, size):
        out = np.zeros((min(size, permutations - start), len(failed)), dtype=np.uint8)
        scatter_failures(
            failed[order].view(np.uint8), starts, sizes, order, by_pool, bounds, failing, seed + np.uint64(start), out
        )
        yield out.view(np.bool_)


def _pools(
    sizes: IntArray,
    order: IntArray,
    starts: IntArray,
    strata: IntArray | None,
) -> IntArray:
    """Return (G,) the pool of each group; groups may change places within a pool."""
    pools = _size_pools(sizes)
    if strata is None:
        return pools
    stratum_of_group = [
        int(np.median(strata[order[start : start + size]])) for start, size in zip(starts, sizes, strict=True)
    ]
    return np.asarray(np.array(stratum_of_group) * (pools.max(initial=0) + 1) + pools)


def _size_pools(sizes: IntArray) -> IntArray:
    """Return (G,) the pool of each group by its size; a pool has at least 10 groups where that is possible."""
    values, counts = np.unique(sizes, return_counts=True)
    pool_of_size = np.empty(len(values), dtype=np.int64)
    pool, filled = 0, 0
    for i, count in enumerate(counts):
        if filled >= _MIN_EXCHANGEABLE:
            pool, filled = pool + 1, 0
        pool_of_size[i] = pool
        filled += count
    if filled < _MIN_EXCHANGEABLE and pool > 0:  # too few of the largest groups: merge them into the previous pool
        pool_of_size[pool_of_size == pool] = pool - 1
    return np.asarray(pool_of_size[np.searchsorted(values, sizes)])
