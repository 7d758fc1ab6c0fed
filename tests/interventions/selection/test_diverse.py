"""Farthest-point traversal: against brute force, its bound, and what it is for."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from lightning_failures.errors import DataError
from lightning_failures.interventions.selection.diverse import spread


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def greedy(rows, k, first):
    """The definition, pair by pair."""
    rows, chosen = unit(rows), [first]
    while len(chosen) < k:
        nearest = {i: max(float(rows[i] @ rows[j]) for j in chosen) for i in range(len(rows)) if i not in chosen}
        chosen.append(min(nearest, key=lambda i: (nearest[i], i)))
    return chosen


def radius(rows, chosen):
    """Largest distance of a row from its nearest chosen row."""
    rows = unit(rows)
    return float(np.linalg.norm(rows[:, None] - rows[list(chosen)][None], axis=2).min(axis=1).max())


@pytest.mark.parametrize("first", [0, 7])
def test_spread__takes_the_farthest_row_each_time(first):
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    assert spread(rows, 20, first).tolist() == greedy(rows, 20, first)


def test_spread__radius_is_at_most_twice_the_best_one():
    for seed in range(5):
        rows = np.random.default_rng(seed).normal(size=(12, 3))
        best = min(radius(rows, chosen) for chosen in combinations(range(12), 3))
        assert radius(rows, spread(rows, 3)) <= 2 * best + 1e-6


def test_spread__finds_every_cluster():
    rng = np.random.default_rng(1)
    rows = np.concatenate(
        [np.eye(6)[k] + 0.05 * rng.normal(size=(size, 6)) for k, size in enumerate([80, 9, 5, 3, 2, 1])]
    )
    cluster = np.repeat(np.arange(6), [80, 9, 5, 3, 2, 1])
    assert sorted(cluster[spread(rows, 6)]) == list(range(6))


def test_spread__copies_are_taken_last_and_never_twice():
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert spread(rows, 9).tolist() == [0, 2, 1, 3]


def test_spread__edges():
    assert spread(np.empty((0, 3)), 2).tolist() == []
    assert spread(np.ones((2, 3)), 0).tolist() == []
    with pytest.raises(DataError, match="first must be one of 2 rows, got 2"):
        spread(np.ones((2, 3)), 1, first=2)
    with pytest.raises(DataError, match="finite"):
        spread(np.full((2, 3), np.nan), 1)
