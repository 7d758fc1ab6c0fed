import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lightning_failures.stats.folds import join_copies, join_sources, permuted_outcomes, stratified_group_folds


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60), st.randoms())
def test_join_sources__is_the_union_of_both_relations(rows, random):
    sources = np.array([source for source, _ in rows], dtype=np.int64)
    marks = np.array([mark for _, mark in rows], dtype=np.int64)
    joined = join_sources(sources, marks)

    # by definition: the smallest name that can be reached by steps to an equal source or an equal mark
    expected = sources.copy()
    for _ in rows:
        for column in (sources, marks):
            expected = np.array([expected[column == value].min() for value in column], dtype=np.int64)
    assert joined.tolist() == expected.tolist()
    order = np.array(random.sample(range(len(rows)), len(rows)), dtype=np.int64)
    assert join_sources(sources[order], marks[order]).tolist() == joined[order].tolist()


def test_join_copies__names_may_be_strings_and_without_copies_nothing_changes():
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float16)
    names = np.array(["d", "c", "b", "a"])
    assert join_copies(names, rows) is names
    assert join_copies(names, rows[[0, 1, 0, 1]]).tolist() == ["b", "a", "b", "a"]
    assert join_copies(np.array([5, 5, 6, 7]), rows[[0, 0, 1, 2]]).tolist() == [5, 5, 6, 7]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=1, max_size=80), st.integers(2, 5))
def test_folds__keep_groups_whole_whatever_the_order(rows, folds):
    failed = np.array([f for f, _ in rows])
    groups = np.array([g for _, g in rows])
    fold = stratified_group_folds(failed, groups, folds=folds)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in groups)
    assert set(fold) <= set(range(folds))
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(stratified_group_folds(failed[order], groups[order], folds=folds), fold[order])


@given(st.lists(st.booleans(), min_size=1, max_size=100), st.integers(2, 5), st.integers(0, 3))
def test_folds__are_balanced_without_groups(failed, folds, seed):
    failed = np.array(failed)
    fold = stratified_group_folds(failed, np.arange(len(failed)), folds=folds, seed=seed)
    for mask in (failed, ~failed):
        assert np.ptp(np.bincount(fold[mask], minlength=folds)) <= 1


def _permuted(failed, groups, count, seed=0, strata=None):
    labellings = list(permuted_outcomes(failed, groups, count, np.random.default_rng(seed), strata=strata))
    assert sum(map(len, labellings)) == count
    return np.concatenate(labellings)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_permuted_outcomes__singletons_are_a_plain_permutation(share):
    failed = np.arange(40) < 40 * share
    labellings = _permuted(failed, np.arange(40), 20_000)
    assert (labellings.sum(axis=1) == failed.sum()).all()
    np.testing.assert_allclose(labellings.mean(axis=0), share, atol=0.02)  # every place alike
    together = (labellings.T.astype(float) @ labellings) / len(labellings)  # and every pair of places
    expected = share * (failed.sum() - 1) / 39
    np.testing.assert_allclose(together[~np.eye(40, dtype=bool)], expected, atol=0.02)


def test_permuted_outcomes__all_labellings_are_as_likely():
    """Two failures among five: ten labellings, a chi-squared test that a fair shuffle passes."""
    labellings = _permuted(np.array([True, True, False, False, False]), np.arange(5), 50_000)
    _, counts = np.unique(labellings, axis=0, return_counts=True)
    assert len(counts) == 10
    assert chisquare(counts).pvalue > 1e-3


def test_permuted_outcomes__equal_groups_move_with_their_outcomes():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 4))
    failed = np.random.default_rng(1).random(120) < 0.3
    sequences = sorted(tuple(failed[groups == g]) for g in range(30))
    labellings = _permuted(failed, groups, 200)
    assert all(sorted(tuple(row[groups == g]) for g in range(30)) == sequences for row in labellings)
    assert len(np.unique(labellings, axis=0)) == 200


def test_permuted_outcomes__unequal_groups_keep_one_outcome_each():
    groups = np.repeat(np.arange(40), np.arange(1, 41))
    failed = groups % 3 == 0
    labellings = _permuted(failed, groups, 200)
    assert all(len(np.unique(row[groups == g])) == 1 for row in labellings for g in range(40))
    assert len(np.unique(labellings, axis=0)) == 200
    assert abs(labellings.mean() - failed.mean()) < 0.05


def test_permuted_outcomes__strata_are_closed():
    strata = np.arange(60) // 20
    failed = np.arange(60) % 20 < 4 * (strata + 1)
    for row in _permuted(failed, np.arange(60), 50, strata=strata):
        assert np.array_equal(np.bincount(strata[row]), np.bincount(strata[failed]))


@pytest.mark.parametrize("failed", [np.zeros(9, bool), np.ones(9, bool)])
def test_permuted_outcomes__nothing_to_permute(failed):
    assert (_permuted(failed, np.arange(9), 5) == failed).all()


def test_permuted_outcomes__seed_alone_decides_and_blocks_differ():
    failed = np.arange(3000) < 900  # more rows than fit into one block
    first, again, other = (_permuted(failed, np.arange(3000), 60, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) == 60
