"""Error rates of dependent examples, and the exact test of two of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from lightning_failures.stats.intervals import holm_adjusted, wilson_interval
from lightning_failures.stats.rates import Rate, correlation_within, exact_p_values, rate_of


def test_rate__of_independent_examples():
    failed = np.arange(30) % 3 == 0
    rate = rate_of(failed, np.arange(30) < 20)
    assert rate == Rate(20, 7, 20.0)
    assert rate.interval == wilson_interval(7, 20)


def test_rate__of_copies_is_that_of_the_originals():
    failed = np.random.default_rng(0).random(50) < 0.3
    rows = np.arange(50) < 30
    one = rate_of(failed, rows)
    many = rate_of(np.repeat(failed, 4), np.repeat(rows, 4), np.repeat(np.arange(50), 4))
    assert many.rate == one.rate
    assert many.effective == pytest.approx(one.effective, rel=0.1)
    assert correlation_within(np.repeat(failed, 4), np.repeat(np.arange(50), 4)) == pytest.approx(1, abs=0.1)


def test_p_values__are_those_of_fisher():
    pairs = [(Rate(20, k, 20.0), Rate(35, 9, 35.0)) for k in range(21)]
    expected = [fisher_exact([[k, 20 - k], [9, 26]], alternative="greater")[1] for k in range(21)]
    assert exact_p_values(pairs) == pytest.approx(expected)
    assert exact_p_values([]) == []


def test_p_values__fewer_effective_examples_say_less():
    alone = exact_p_values([(Rate(40, 20, 40.0), Rate(60, 12, 60.0))])[0]
    together = exact_p_values([(Rate(40, 20, 9.7), Rate(60, 12, 20.0))])[0]
    assert alone < 0.01 < together


def test_holm__by_its_definition():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7):
        p = rng.random(size) ** 3
        order = np.argsort(p)
        running, expected = 0.0, np.empty(size)
        for rank, row in enumerate(order):
            running = max(running, min((size - rank) * p[row], 1.0))
            expected[row] = running
        assert holm_adjusted(p) == pytest.approx(expected)
    assert holm_adjusted([]).shape == (0,)
