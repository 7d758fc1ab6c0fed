"""Shrunken rates: a truly bad class leads thousands of small ones, and intervals cover the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.stats.shrinkage import shrunken_rates


def test_shrunken_rates__a_truly_bad_class_leads_a_thousand_small_ones():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        failures, examples = np.append(rng.binomial(5, 0.2, 1000), 60), np.append(np.full(1000, 5), 100)
        assert (failures / examples).argmax() != 1000
        rates, intervals = shrunken_rates(failures, examples)
        assert rates.argmax() == 1000
        assert rates[1000] == pytest.approx(0.6, abs=0.1)
        assert intervals[1000, 0] > 0.4


@pytest.mark.parametrize("shape", [(2, 8), (0.5, 2), (40, 160)])
@pytest.mark.parametrize("examples", [5, 40])
def test_shrunken_rates__intervals_cover_the_truth_and_the_mean_is_nearer_to_it(shape, examples):
    rng, covered, shrunken, raw = np.random.default_rng(0), [], [], []
    for _ in range(40):
        truth = rng.beta(*shape, size=200)
        failures = rng.binomial(examples, truth)
        rates, intervals = shrunken_rates(failures, np.full(200, examples))
        covered.append((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
        shrunken.append((rates - truth) ** 2)
        raw.append((failures / examples - truth) ** 2)
    assert 0.91 <= np.mean(covered) <= 0.995
    assert np.mean(shrunken) < 0.95 * np.mean(raw)


def test_shrunken_rates__of_few_classes_are_hardly_more_certain_than_their_own_examples():
    (rate,), ((low, high),) = shrunken_rates([20], [100])
    assert rate == pytest.approx(0.2, abs=0.01)
    assert 0.12 < low < 0.15
    assert 0.25 < high < 0.30
    rates, intervals = shrunken_rates([20, 60], [100, 100])
    assert rates == pytest.approx([0.2, 0.6], abs=0.03)
    assert (np.diff(intervals) > 0.1).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1)), min_size=1, max_size=30))
def test_shrunken_rates__are_rates_between_their_own_and_the_mean(rows):
    examples = np.array([n for n, _ in rows], dtype=float)
    failures = np.array([n * share for n, share in rows])
    rates, intervals = shrunken_rates(failures, examples)
    assert ((intervals[:, 0] <= rates) & (rates <= intervals[:, 1])).all()
    assert (intervals >= 0).all()
    assert (intervals <= 1).all()
    one_size = np.full(len(rows), 10.0)
    order = np.argsort(failures / examples, kind="stable")
    same_size, _ = shrunken_rates(10 * failures / examples, one_size)
    assert (np.diff(same_size[order]) >= -1e-9).all()


def test_shrunken_rates__of_no_class():
    rates, intervals = shrunken_rates([], [])
    assert (rates.shape, intervals.shape) == ((0,), (0, 2))
