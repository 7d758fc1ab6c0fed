"""Splits of a data set by seed, and subsamples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_failures.core.types import IntArray

QUICK = 10
"""The number of images of which ``--quick`` leaves one."""


def stratified_split(labels: Any, shares: Sequence[float], seed: int) -> list[IntArray]:
    """Divide examples at random, each class in the same shares; returns the ascending indices of each part.

    >>> parts = stratified_split([0] * 10 + [1] * 5, (0.2, 0.4, 0.4), seed=0)
    >>> [len(part) for part in parts], sorted(np.concatenate(parts).tolist()) == list(range(15))
    ([3, 6, 6], True)
    """
    y = np.asarray(labels)
    rng = np.random.default_rng([seed, 0x5B117])
    ends = np.cumsum(np.asarray(shares) / np.sum(shares))[:-1]
    parts: list[list[IntArray]] = [[] for _ in shares]
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        for part, some in zip(parts, np.split(rows, np.rint(ends * len(rows)).astype(int)), strict=True):
            part.append(some)
    return [np.sort(np.concatenate(part)) for part in parts]


def split_by_source(sources: Any, shares: Sequence[float], seed: int) -> list[IntArray]:
    """Divide examples at random, all examples of a source together; returns the ascending indices of each part.

    >>> parts = split_by_source([7, 7, 7, 1, 2, 3], (0.5, 0.5), seed=0)
    >>> sorted(map(len, parts)), sorted(np.concatenate(parts).tolist())
    ([2, 4], [0, 1, 2, 3, 4, 5])
    """
    names, place = np.unique(np.asarray(sources), return_inverse=True)
    rank = np.random.default_rng([seed, 0x50C]).permutation(len(names))[place]
    ends = np.rint(np.cumsum(np.asarray(shares) / np.sum(shares)) * len(names))
    part = np.searchsorted(ends, rank, side="right")
    return [np.flatnonzero(part == k) for k in range(len(shares))]


def at_most(rows: IntArray, most: int, seed: int) -> IntArray:
    """Return a random choice of at most ``most`` rows, ascending.

    >>> at_most(np.arange(3), 5, seed=0).tolist(), len(at_most(np.arange(9), 5, seed=0))
    ([0, 1, 2], 5)
    """
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng([seed, 0xC07]).permutation(rows)[:most])


def every_tenth(rows: IntArray, quick: bool) -> IntArray:
    """Return one in ten of the rows if ``quick``, else all of them."""
    return rows[::QUICK] if quick else rows
