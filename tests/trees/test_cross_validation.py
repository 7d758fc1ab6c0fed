import numpy as np
import pytest

from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.trees import fit_failure_tree
from lightning_failures.trees.cross_validation import fillable_folds


def _chance(x, planted):
    return np.where(x[:, 0] > 0.7, 0.6, 0.2) if planted else np.full(len(x), 0.3)


@pytest.mark.parametrize("planted", [False, True], ids=["noise", "planted"])
def test_intervals__cover_the_true_rate_of_the_leaf(planted):
    """Counts of the data that grew a leaf are far off; held-out ones are not."""
    covered, naive = [], []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        x, fresh = rng.normal(size=(400, 20)), rng.normal(size=(2000, 20))
        tree = fit_failure_tree(x, rng.random(400) < _chance(x, planted))
        leaf_of = tree.apply(fresh).numpy()
        for i, leaf in enumerate(tree.leaves):
            truth = _chance(fresh, planted)[leaf_of == i].mean()
            covered.append(leaf.interval[0] <= truth <= leaf.interval[1])
            low, high = wilson_interval(leaf.failures, leaf.size)
            naive.append(low <= truth <= high)
    assert np.mean(covered) > 0.9
    assert np.mean(naive) < np.mean(covered) - 0.1


@pytest.mark.slow
def test_intervals__cover_19_of_20_leaves():
    covered = []
    for seed in range(200):
        rng = np.random.default_rng([1, seed])
        x, fresh = rng.normal(size=(400, 20)), rng.normal(size=(5000, 20))
        tree = fit_failure_tree(x, rng.random(400) < _chance(x, planted=seed % 2 == 0))
        leaf_of = tree.apply(fresh).numpy()
        for i, leaf in enumerate(tree.leaves):
            truth = _chance(fresh, planted=seed % 2 == 0)[leaf_of == i].mean()
            covered.append(leaf.interval[0] <= truth <= leaf.interval[1])
    assert len(covered) > 1000
    assert 0.93 < np.mean(covered) < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("per_source", [1, 5])
def test_heldout_aler__is_centred_on_0_where_there_is_nothing(per_source):
    gains, p_values = [], []
    for seed in range(300):
        rng = np.random.default_rng([2, seed])
        luck = rng.normal(size=240 // per_source).repeat(per_source)
        x = rng.normal(size=(240, 20)) + rng.normal(size=(240 // per_source, 20)).repeat(per_source, axis=0)
        tree = fit_failure_tree(x, luck + rng.normal(size=240) > 0.7, groups=np.arange(240) // per_source)
        gains.append(tree.heldout_aler_minus_ber)
        p_values.append(tree.p_value)
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(300)
    assert np.mean(np.array(p_values) <= 0.05) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_intervals__of_leaves_that_every_fold_finds_again():
    """Then all held-out examples of a leaf are its own, and the interval is that of two thirds of their number."""
    rng = np.random.default_rng(0)
    x = np.repeat([0.0, 1.0], [300, 150])[:, None]
    failed = rng.random(450) < np.where(x[:, 0] > 0, 0.6, 0.1)
    for leaf in fit_failure_tree(x, failed).leaves:
        expected = wilson_interval(leaf.failures / 1.5, leaf.size / 1.5)
        assert leaf.interval == pytest.approx(expected, abs=0.01)


def test_intervals__count_sources_not_examples():
    rng = np.random.default_rng(0)
    x = np.repeat([0.0, 1.0], [300, 300])[:, None]
    sources = np.repeat(np.arange(60), 10)
    failed = (rng.random(60) < np.where(np.arange(60) < 30, 0.2, 0.7))[sources]
    low, high = fit_failure_tree(x, failed, groups=sources).leaves[0].interval
    few_low, few_high = wilson_interval(0.7 * 30 / 1.5, 30 / 1.5)
    assert high - low == pytest.approx(few_high - few_low, rel=0.15)


def test_intervals__of_a_leaf_that_never_fails():
    x = np.repeat([0.0, 1.0], [200, 100])[:, None]
    failed = (np.arange(300) % 2 == 0) & (x[:, 0] > 0)
    safe = fit_failure_tree(x, failed).leaves[-1]
    assert safe.interval == pytest.approx((0.0, wilson_interval(0, 200 / 1.5)[1]), abs=1e-3)


def test_stderr__is_the_spread_over_data_sets():
    gains, stderrs = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(300, 20))
        tree = fit_failure_tree(x, rng.random(300) < _chance(x, planted=True))
        gains.append(tree.heldout_aler_minus_ber)
        stderrs.append(tree.heldout_aler_stderr)
    assert np.std(gains, ddof=1) == pytest.approx(np.mean(stderrs), rel=0.4)
    assert np.mean(gains) > 2 * np.mean(stderrs)


def test_fillable_folds__as_many_as_the_sources_allow():
    failed = np.arange(20) < 3
    assert len(np.unique(fillable_folds(failed, np.arange(20), 5, 0))) == 3
    assert fillable_folds(failed, np.where(failed, 0, np.arange(20)), 5, 0) is None
    assert fillable_folds(np.zeros(20, dtype=bool), np.arange(20), 5, 0) is None
