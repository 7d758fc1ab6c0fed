import numpy as np
import pytest

from lightning_failures.heldout import fillable_folds
from lightning_failures.statistics import wilson_interval
from lightning_failures.trees import fit_failure_tree


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
