import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.splits import permuted_rows, stratified_group_folds


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


def test_permuted_rows__singletons_are_a_plain_permutation():
    rows = permuted_rows(np.arange(50), 20, np.random.default_rng(0))
    assert all(np.array_equal(np.sort(row), np.arange(50)) for row in rows)
    assert len(np.unique(rows, axis=0)) == 20


def test_permuted_rows__equal_groups_move_as_blocks():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 4))
    outcome = groups % 3 == 0  # one outcome a group
    for row in permuted_rows(groups, 20, np.random.default_rng(1)):
        assert np.array_equal(np.sort(row), np.arange(120))
        assert all(len(np.unique(outcome[row][groups == g])) == 1 for g in range(30))


def test_permuted_rows__unequal_groups_keep_one_outcome_each():
    sizes = np.arange(1, 41)
    groups = np.repeat(np.arange(40), sizes)
    outcome = groups % 3 == 0
    moved = outcome[permuted_rows(groups, 200, np.random.default_rng(0))]
    assert all(len(np.unique(row[groups == g])) == 1 for row in moved for g in range(40))
    assert len(np.unique(moved, axis=0)) == 200
    assert abs(moved.mean() - outcome.mean()) < 0.05


def test_permuted_rows__strata_are_closed():
    strata = np.arange(60) // 20
    for row in permuted_rows(np.arange(60), 20, np.random.default_rng(0), strata=strata):
        assert np.array_equal(strata[row], strata)
