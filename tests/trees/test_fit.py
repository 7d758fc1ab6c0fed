import math
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trees import average_leaf_error_rate, error_coverage, fit_failure_tree


def _planted(n=600, dim=12, *, seed=0):
    """Feature 5 above 0.7 makes failures likely, with feature 2 below 0 more so."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)).astype(np.float32)
    chance = 0.05 + 0.45 * (x[:, 5] > 0.7) + 0.4 * ((x[:, 5] > 0.7) & (x[:, 2] < 0))
    return x, rng.random(n) < chance


@pytest.mark.parametrize("feature_selection", ["information_gain", "mutual_information"])
def test_fit__finds_the_planted_rule(feature_selection):
    x, failed = _planted()
    tree = fit_failure_tree(x, failed, feature_selection=feature_selection)
    assert tree.split_features[0] == 5
    assert tree.selected_features[0] == 5 or feature_selection == "mutual_information"
    worst = tree.leaves[0]
    assert worst.splits[0].feature == 5
    assert worst.splits[0].above
    assert worst.splits[0].threshold == pytest.approx(0.7, abs=0.15)
    assert "feature 5 > " in worst.rule
    assert tree.pattern
    assert tree.p_value < 1e-4
    assert tree.aler > tree.heldout_aler > tree.base_error_rate + 0.2
    assert worst in tree.valid_leaves()
    assert tree.valid_leaves(delta=1.0) == []
    assert tree.worst_leaf.interval[0] == max(leaf.interval[0] for leaf in tree.leaves)
    assert tree.worst_leaf.interval[0] > tree.base_error_rate


def test_fit__rates_come_from_raw_counts():
    x, failed = _planted(seed=1)
    tree = fit_failure_tree(x, failed)
    leaf = tree.apply(x).numpy()
    assert tree.aler == pytest.approx(average_leaf_error_rate(leaf, failed))
    assert tree.base_error_rate == pytest.approx(failed.mean())
    assert sum(entry.size for entry in tree.leaves) == len(x)
    assert [entry.importance for entry in tree.leaves] == sorted((e.importance for e in tree.leaves), reverse=True)
    for i, entry in enumerate(tree.leaves):
        assert entry.ids.tolist() == np.flatnonzero(leaf == i).tolist()
        assert entry.size >= 20
        assert entry.failures == failed[leaf == i].sum()
        assert entry.error_rate == pytest.approx(failed[leaf == i].mean())
        assert entry.error_coverage == pytest.approx(failed[leaf == i].sum() / failed.sum())
        assert entry.importance == pytest.approx(entry.error_rate * entry.error_coverage)
        inside = np.ones(len(x), dtype=bool)
        for split in entry.splits:
            inside &= (x[:, split.feature] > split.threshold) == split.above
        assert np.array_equal(inside, leaf == i), entry.rule


def test_fit__equals_scikit_learns_tree():
    x, failed = _planted(dim=6)
    tree = fit_failure_tree(x, failed)
    weights = {0: 1.0, 1: (~failed).sum() / failed.sum()}
    reference = DecisionTreeClassifier(
        criterion="entropy", max_depth=3, min_samples_leaf=20, class_weight=weights, random_state=0
    ).fit(x[:, tree.selected_features], failed.astype(int))
    pairs = set(zip(tree.apply(x).tolist(), reference.apply(x[:, tree.selected_features]).tolist(), strict=True))
    assert len(pairs) == len(tree.leaves) == reference.get_n_leaves()


def test_fit__rule_merges_the_bounds_of_a_feature():
    x = np.linspace(0, 1, 400)[:, None]
    failed = (x[:, 0] > 0.4) & (x[:, 0] < 0.6)
    tree = fit_failure_tree(x, failed, max_depth=2)
    assert tree.leaves[0].rule == "0.4 < feature 0 <= 0.6"
    assert tree.leaves[0].error_rate == 1.0
    assert tree.split_features == (0,)


def test_fit__ids_make_the_order_of_rows_irrelevant():
    x, failed = _planted(n=300)
    ids = np.random.default_rng(1).permutation(1000)[:300]
    order = np.random.default_rng(2).permutation(300)
    a = fit_failure_tree(x, failed, ids=ids)
    b = fit_failure_tree(torch.from_numpy(x[order]), torch.from_numpy(failed[order]), ids=torch.from_numpy(ids[order]))
    assert [leaf.rule for leaf in a.leaves] == [leaf.rule for leaf in b.leaves]
    assert [leaf.interval for leaf in a.leaves] == [leaf.interval for leaf in b.leaves]
    assert all(torch.equal(p.ids, q.ids) for p, q in zip(a.leaves, b.leaves, strict=True))
    assert (a.heldout_aler, a.heldout_aler_stderr) == (b.heldout_aler, b.heldout_aler_stderr)


@pytest.mark.parametrize(
    ("n", "failures", "said"),
    [
        (0, 0, "no examples"),
        (1, 0, "no failures"),
        (1, 1, "every example failed"),
        (30, 10, "at least 40"),
        (100, 0, "no failures"),
        (100, 100, "every example failed"),
        (100, 1, "single source"),
    ],
)
def test_fit__undefined_groups_give_a_reason_and_no_pattern(n, failures, said):
    x = np.random.default_rng(0).normal(size=(n, 5))
    tree = fit_failure_tree(x, np.arange(n) < failures)
    assert said in tree.skipped
    assert not tree.pattern
    assert len(tree.apply(x)) == n
    assert sum(leaf.size for leaf in tree.leaves) == n
    assert math.isnan(tree.aler) == (failures == 0)
    if failures in (0, n):
        assert len(tree.leaves) == 1
        assert tree.leaves[0].rule == "all examples"
        assert math.isnan(tree.heldout_aler)
        assert math.isnan(tree.p_value)
        assert tree.worst_leaf is None
        assert tree.valid_leaves() == []


def test_fit__two_failures_and_constant_features():
    x = np.random.default_rng(0).normal(size=(100, 5))
    two = fit_failure_tree(x, np.arange(100) < 2)
    assert math.isfinite(two.heldout_aler)
    assert not two.pattern
    constant = fit_failure_tree(np.ones((100, 5)), np.arange(100) < 30)
    assert constant.skipped == "no feature splits the examples"
    assert constant.heldout_aler_minus_ber == pytest.approx(0)
    assert constant.p_value == 1.0
    assert not constant.pattern


def test_fit__noise_has_no_pattern():
    patterns, gains, aler = 0, [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tree = fit_failure_tree(rng.normal(size=(250, 20)), rng.random(250) < 0.3)
        patterns += tree.pattern
        gains.append(tree.heldout_aler_minus_ber)
        aler.append(tree.aler - tree.base_error_rate)
    assert patterns <= 4
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(30) + 1e-3
    assert np.mean(aler) > 0.05, "without holding out, noise would look like a pattern"


def test_fit__groups_stay_whole():
    """Each source is copied six times: torn apart, the tree would know the answers of the held-out copies."""
    rng = np.random.default_rng(3)
    sources = np.repeat(np.arange(60), 6)
    x = rng.normal(size=(60, 40))[sources] + 1e-6 * rng.normal(size=(360, 40))  # nearly equal, but no exact copies
    failed = (rng.random(60) < 0.4)[sources]
    torn = fit_failure_tree(x, failed)
    whole = fit_failure_tree(x, failed, groups=sources)
    assert torn.pattern
    assert not whole.pattern
    assert np.mean([b[1] - b[0] for b in (leaf.interval for leaf in whole.leaves)]) > 0.3


def test_fit__held_out_aler_by_definition():
    from lightning_failures.stats.folds import stratified_group_folds

    x, failed = _planted(n=300, seed=4)
    tree = fit_failure_tree(x, failed, folds=3)
    fold = stratified_group_folds(failed, np.arange(300), folds=3)
    scores, base = [], []
    for k in range(3):
        kept, held = fold != k, fold == k
        fitted = fit_failure_tree(x[kept], failed[kept], folds=3)
        there = fitted.apply(x[held]).numpy()
        scores.append(
            sum(leaf.error_rate * error_coverage(there == i, failed[held]) for i, leaf in enumerate(fitted.leaves))
        )
        base.append(failed[kept].mean())
    assert tree.heldout_aler == pytest.approx(np.mean(scores))
    assert tree.heldout_aler_minus_ber == pytest.approx(np.mean(scores) - np.mean(base))


def _strided(x):
    spread = np.zeros((2 * len(x), 3 * x.shape[1]), dtype=x.dtype)
    spread[::2, ::3] = x
    return spread[::2, ::3]


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, _strided])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fit__takes_any_layout_and_changes_nothing(dtype, layout):
    x, failed = _planted(n=200)
    given = layout(x.astype(dtype))
    given.setflags(write=False)
    failed.setflags(write=False)
    before = given.tobytes(), failed.tobytes()
    tree = fit_failure_tree(given, failed)
    assert tree.split_features[0] == 5
    plain = torch.from_numpy(x.astype(dtype))
    assert np.array_equal(tree.apply(given), tree.apply(plain))
    assert [leaf.interval for leaf in tree.leaves] == [leaf.interval for leaf in fit_failure_tree(plain, failed).leaves]
    assert (given.tobytes(), failed.tobytes()) == before


def test_fit__holds_no_second_copy_of_the_features():
    x = np.random.default_rng(0).normal(size=(100, 40_000)).astype(np.float32)
    failed = x[:, 7] > 0.5
    fit_failure_tree(x, failed)  # what is loaded and compiled once does not count
    tracemalloc.start()
    tree = fit_failure_tree(x, failed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tree.split_features[0] == 7
    assert peak < x.nbytes / 2


@pytest.mark.parametrize(("n", "dim"), [(60, 500), (500, 3)], ids=["n < D", "n > D"])
def test_fit__wide_and_narrow(n, dim):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, dim))
    tree = fit_failure_tree(x, x[:, 1] > 0.3)
    assert tree.split_features[0] == 1
    assert tree.pattern
    assert len(tree.selected_features) == min(20, dim)


def test_fit__duplicated_rows():
    """Twice the same rows are twice the same evidence in the rates, and no more evidence in the test."""
    x, failed = _planted(n=200)
    once = fit_failure_tree(x, failed, min_leaf=20, groups=np.arange(200))
    twice = fit_failure_tree(np.repeat(x, 2, 0), np.repeat(failed, 2), min_leaf=40, groups=np.repeat(np.arange(200), 2))
    assert [leaf.rule for leaf in twice.leaves] == [leaf.rule for leaf in once.leaves]
    assert [leaf.size for leaf in twice.leaves] == [2 * leaf.size for leaf in once.leaves]
    assert twice.aler == pytest.approx(once.aler)
    assert twice.heldout_aler_stderr > 0.6 * once.heldout_aler_stderr
    alike = fit_failure_tree(np.repeat(x[:1], 100, 0), np.arange(100) < 40)
    assert alike.skipped == "no feature splits the examples"
    assert not alike.pattern


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"features": np.zeros(50)}, DataError, r"\(N, D\)"),
        ({"features": np.full((50, 2), np.inf)}, DataError, "must be finite"),
        ({"failed": [True]}, DataError, "failed"),
        ({"ids": np.zeros(50, dtype=int)}, DataError, "unique"),
        ({"feature_selection": "gini"}, ConfigurationError, "gini"),
        ({"top_features": 0}, ConfigurationError, "top_features"),
        ({"folds": 1}, ConfigurationError, "folds"),
    ],
)
def test_fit__says_what_is_wrong(change, error, said):
    with pytest.raises(error, match=said):
        fit_failure_tree(**({"features": np.zeros((50, 2)), "failed": np.arange(50) < 20} | change))


def test_apply__wrong_width():
    x, failed = _planted(n=100)
    with pytest.raises(DataError, match="12 dimensions"):
        fit_failure_tree(x, failed).apply(x[:, :3])


def _noise_or_rule(n, seed, *, excess):
    """30 % fail; where feature 5 exceeds 0.7, ``excess`` more."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 30)).astype(np.float32)
    return x, rng.random(n) < 0.3 + excess * (x[:, 5] > 0.7)


def test_valid_leaves__on_noise_most_are_valid_in_sample_and_few_are_held_out():
    in_sample, held_out = 0, 0
    for seed in range(20):
        tree = fit_failure_tree(*_noise_or_rule(150, seed, excess=0.0))
        in_sample += tree.leaves[0] in tree.valid_leaves()
        held_out += tree.leaves[0] in tree.valid_leaves(held_out=True)
    assert in_sample >= 15
    assert held_out <= 5


def test_valid_leaves__a_planted_one_is_valid_held_out_too():
    tree = fit_failure_tree(*_noise_or_rule(600, 0, excess=0.5), max_depth=1)
    assert tree.valid_leaves(held_out=True) == tree.valid_leaves() == [tree.leaves[0]]
    assert tree.valid_leaves(delta=0.6, held_out=True) == tree.valid_leaves(tau=0.9, held_out=True) == []


@pytest.mark.parametrize(("excess", "max_depth"), [(0.0, 3), (0.3, 3), (0.3, 1)])
def test_leaves__heldout_rates_are_those_of_fresh_data(excess, max_depth):
    fresh_x, fresh_failed = _noise_or_rule(20_000, 999, excess=excess)
    in_sample, held_out, fresh = [], [], []
    for seed in range(30):
        tree = fit_failure_tree(*_noise_or_rule(200, seed, excess=excess), max_depth=max_depth)
        best, inside = tree.leaves[0], tree.apply(fresh_x).numpy() == 0
        in_sample.append((best.error_rate, best.error_coverage))
        held_out.append((best.heldout_error_rate, best.heldout_error_coverage))
        fresh.append((fresh_failed[inside].mean(), error_coverage(inside, fresh_failed)))
    (rate, coverage), optimism = np.mean(held_out, axis=0), np.mean(in_sample, axis=0) - np.mean(fresh, axis=0)
    assert (rate, coverage) == pytest.approx(np.mean(fresh, axis=0), abs=0.04)
    assert optimism[0] > 0.05


def test_leaves__without_folds_have_no_heldout_rates():
    x = np.repeat([0.0, 1.0], 50)[:, None]
    tree = fit_failure_tree(x, x[:, 0] > 0, groups=np.repeat([0, 1], 50))
    assert {leaf.heldout_error_rate for leaf in tree.leaves} == {None}
    assert {leaf.heldout_error_coverage for leaf in tree.leaves} == {None}
    assert tree.valid_leaves(held_out=True) == []
    assert tree.heldout_error_rates == (None, None, None)
