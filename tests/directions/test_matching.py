"""Similarity and matching of modes, and their change, against independent references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.matching import (
    SAME_MODE_SIMILARITY,
    ModeSimilarity,
    ModeSnapshot,
    flagged_change,
    match_modes,
    membership_change,
    mode_similarity,
)
from lightning_failures.stats.intervals import sign_test


def look(ids, flagged, failed) -> ModeSnapshot:
    ids = np.array(sorted(ids))
    return ModeSnapshot(ids, np.isin(ids, list(flagged)), np.isin(ids, list(failed)))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (0, 6), (7, 7), (12, 3), (300, 250)])
def test_sign_test__is_the_exact_binomial(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_test(gained, lost) == pytest.approx(expected)


SETS = st.sets(st.integers(0, 20))


@settings(max_examples=60, deadline=None)
@given(SETS, SETS, SETS, SETS, SETS, SETS)
def test_looks__are_compared_as_sets(ids, flagged, failed, other_ids, other_flagged, other_failed):
    now, then = look(ids, flagged, failed), look(other_ids, other_flagged, other_failed)
    both = ids & other_ids
    members, former = both & flagged & failed, both & other_flagged & other_failed
    found = mode_similarity(np.array([0.6, 0.8]), now, np.array([1.0, 0.0]), then)
    smaller = min(len(members), len(former))
    assert found.shared == (pytest.approx(len(members & former) / smaller) if smaller else None)
    assert found.cosine == pytest.approx(0.6)
    assert membership_change(now, then) == (len(members - former), len(former - members))
    frozen = both & other_flagged
    assert flagged_change(now, then) == (len(frozen & failed - other_failed), len(frozen & other_failed - failed))
    assert now.size == len(ids & flagged & failed)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_matches__are_the_best_of_all_pairings(rows, columns, seed):
    similarity = np.random.default_rng(seed).uniform(-1, 1, size=(rows, columns))
    found = match_modes([[ModeSimilarity(float(value), None) for value in row] for row in similarity])
    assert all(similarity[i, j] >= SAME_MODE_SIMILARITY for i, j in found)
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    worth = np.where(similarity >= SAME_MODE_SIMILARITY, similarity, 0.0)
    if rows > columns:
        worth = worth.T
    best = max(
        (
            sum(worth[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(max(rows, columns)), min(rows, columns))
        ),
        default=0.0,
    )
    assert sum(similarity[i, j] for i, j in found) == pytest.approx(best)


def test_likeness__rounding_does_not_lead_beyond_one():
    direction = np.full(3, 0.5774)
    some = look(range(4), range(4), range(4))
    assert mode_similarity(direction, some, direction, some).similarity <= 1.0


@pytest.mark.slow
def test_likeness__tells_planted_modes_of_one_class_apart():
    """A small version of what ``benchmarks/diary.py`` calls noise: each analysis has newly drawn failures."""
    rng = np.random.default_rng(0)
    right = {True: [], False: []}
    for _ in range(12):
        axes = np.linalg.qr(rng.normal(size=(256, 2)))[0].T
        inside = rng.random((2, 300)) < 0.25
        x = rng.normal(size=(300, 256)) + 4.0 * inside.T @ axes
        seen = []
        for mode in (0, 0, 1, 1):
            failed = rng.random(300) < np.where(inside[mode], 0.8, 0.08)
            fitted = fit_failure_directions(x, np.zeros(300, dtype=int), ~failed, permutations=0)
            weight = fitted.weight[0].numpy() / np.linalg.norm(fitted.weight[0])
            seen.append((mode, weight, ModeSnapshot(np.arange(300), fitted.out_of_fold.numpy() < 0, failed)))
        for (mode, *one), (other_mode, *other) in itertools.combinations(seen, 2):
            same = mode == other_mode
            right[same].append((mode_similarity(*one, *other).similarity >= SAME_MODE_SIMILARITY) == same)
    assert np.mean(right[True]) >= 0.95
    assert np.mean(right[False]) >= 0.95
