"""The effect of a pattern: error rates of flagged and unflagged examples, their difference, coverage and strength."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.directions.effects import (
    CLEAR,
    STRONG,
    Effect,
    measure_effect,
    measure_effect_within_classes,
    rates_within_classes,
)
from lightning_failures.stats.intervals import difference_interval, wilson_interval


def planted(rng, n, inside, outside, share=0.3):
    flagged = rng.random(n) < share
    failed = rng.random(n) < np.where(flagged, inside, outside)
    return np.where(flagged, -1.0, 1.0) * rng.uniform(0.1, 1, n), failed


def test_effect__by_hand():
    values = np.array([-1.0] * 20 + [1.0] * 80)
    failed = np.zeros(100, dtype=bool)
    failed[:12] = failed[20:24] = True
    effect = measure_effect(values, failed)
    assert (effect.flagged, effect.flagged_error_rate, effect.unflagged_error_rate) == (20, 0.6, 0.05)
    assert effect.difference == pytest.approx(0.55)
    assert effect.interval == difference_interval(0.6, wilson_interval(12, 20), 0.05, wilson_interval(4, 80))
    assert effect.coverage == 12 / 16
    assert effect.gain == pytest.approx(0.55 * 20)  # 12 fail, 1 of 20 would
    assert effect.strength == "strong"


@pytest.mark.parametrize(
    ("low", "strength"), [(-0.2, "weak"), (CLEAR - 1e-9, "weak"), (CLEAR, "clear"), (STRONG, "strong")]
)
def test_strength__by_the_lower_end(low, strength):
    assert Effect(5, 0.9, 0.1, 0.8, (low, 0.9), 0.5).strength == strength


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_effect__all_or_nothing_flagged_is_undefined(value):
    effect = measure_effect(np.full(10, value), np.arange(10) < 4)
    assert np.isnan(effect.difference)
    assert effect.interval == (-1.0, 1.0)
    assert effect.strength == "weak"
    assert np.isnan(effect.gain)


def test_effect__without_failures_or_examples():
    assert np.isnan(measure_effect(np.array([-1.0, 1.0]), np.zeros(2, dtype=bool)).coverage)
    nothing = measure_effect(np.array([np.nan]), np.array([True]))
    assert (nothing.flagged, nothing.interval) == (0, (-1.0, 1.0))


def test_gain__is_not_negative():
    values, failed = np.array([-1.0] * 10 + [1.0] * 10), np.arange(20) >= 10
    assert measure_effect(values, failed).gain == 0


def test_effect__examples_without_a_value_do_not_count():
    values, failed = planted(np.random.default_rng(0), 200, 0.6, 0.1)
    with_unknown = measure_effect(np.append(values, [np.nan] * 50), np.append(failed, [True] * 50))
    assert with_unknown == measure_effect(values, failed)


def test_interval__covers_the_truth():
    """The flags are independent of the outcome given the rates: 95 % intervals miss 0.3 in about 5 % of 400 draws."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        low, high = measure_effect(*planted(rng, 150, 0.45, 0.15)).interval
        missed += not low <= 0.3 <= high
    assert 0.02 <= missed / 400 <= 0.08


def test_interval__of_sources_covers_the_truth_where_that_of_examples_does_not():
    rng = np.random.default_rng(2)
    missed = {"sources": 0, "examples": 0}
    for _ in range(200):
        source = np.repeat(np.arange(40), 8)
        flagged = (np.arange(40) < 15)[source]
        rate = np.where(np.arange(40) < 15, rng.beta(0.9, 1.1, 40), rng.beta(0.3, 1.7, 40))[source]
        failed = rng.random(320) < rate
        values = np.where(flagged, -1.0, 1.0)
        for name, sources in (("sources", source), ("examples", None)):
            low, high = measure_effect(values, failed, sources).interval
            missed[name] += not low <= 0.3 <= high
    assert missed["sources"] / 200 <= 0.1
    assert missed["examples"] / 200 > 0.2


def test_rates_within_classes__by_hand():
    """Class 0 has two examples on either side, class 1 one and three; class 2 lies on one side."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    part = np.array([True, True, False, False, True, False, False, False, True])
    outcome = np.array([True, False, False, False, True, True, False, False, False])
    inside, outside = rates_within_classes(part, outcome, labels)
    first, second = 2 * 2 / 4, 1 * 3 / 4  # weights of the classes
    assert inside.rate == pytest.approx((first * 0.5 + second * 1.0) / (first + second))
    assert outside.rate == pytest.approx((first * 0.0 + second / 3) / (first + second))
    assert inside.effective == pytest.approx((0.5 + 0.5 + 0.75) ** 2 / (0.25 + 0.25 + 0.75**2))


def test_rates_within_classes__copies_are_worth_one_example():
    rng = np.random.default_rng(0)
    labels, part, outcome = np.repeat([0, 1], 50), rng.random(100) < 0.5, rng.random(100) < 0.4
    once = rates_within_classes(part, outcome, labels)
    copies = [np.repeat(one, 7) for one in (part, outcome, labels, np.arange(100))]
    for one, other in zip(once, rates_within_classes(*copies), strict=True):
        assert other.rate == pytest.approx(one.rate)
        assert other.effective == pytest.approx(one.effective, rel=0.1)


def test_effect_within_classes__of_flags_that_tell_hard_classes_is_zero():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 100)
    failed = rng.random(2000) < labels / 20
    values = np.where(rng.random(2000) < labels / 20, -1.0, 1.0)
    assert measure_effect(values, failed).interval[0] > 0.1
    within = measure_effect_within_classes(values, failed, labels)
    assert within.interval[0] < 0 < within.interval[1]
    assert abs(within.gain) < 30 < measure_effect(values, failed).gain


def test_effect_within_classes__of_one_class_is_the_plain_one():
    values, failed = planted(np.random.default_rng(1), 400, 0.6, 0.1)
    within = measure_effect_within_classes(values, failed, np.zeros(400, dtype=np.int64))
    plain = measure_effect(values, failed)
    assert within.difference == pytest.approx(plain.difference)
    assert within.interval == pytest.approx(plain.interval)
    assert within.gain == pytest.approx(plain.gain)


def test_effect_within_classes__without_a_class_on_both_sides_is_undefined():
    effect = measure_effect_within_classes(np.array([-1.0, -1.0, 1.0]), np.array([True] * 3), np.array([0, 0, 1]))
    assert np.isnan(effect.difference)
    assert effect.interval == (-1.0, 1.0)
