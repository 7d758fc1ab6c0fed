"""A fall of accuracy against the wobble of accuracy between validations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from lightning_failures.errors import DataError
from lightning_failures.interventions.wobble import measure_fall


def found_at(before, since):
    """Return the look, from 1, at which a fall is found; 0 if it is not."""
    looks = range(1, len(since) + 1)
    return next((look for look in looks if measure_fall(before, since[:look]).is_significant), 0)


def rates(history, wobble, *, trainings, epochs, harm=0.0, rise=0.0, seed=0):
    """Return the share of trainings in which a fall is found."""
    rng = np.random.default_rng([seed, history])
    found = 0
    for _ in range(trainings):
        accuracy = 0.7 + rise * np.arange(history + epochs) + rng.normal(0, wobble, history + epochs)
        accuracy[history:] -= harm
        found += found_at(accuracy[:history], accuracy[history:]) > 0
    return found / trainings


def test_measure_fall__by_definition():
    before, since = [0.5, 0.7, 0.6, 0.8], [0.5, 0.6, 0.4, 0.5, 0.6, 0.5]
    found = measure_fall(before, since)
    assert (found.before, found.since) == pytest.approx((0.7, 0.52))
    # rising curve: 0.5, 0.65, 0.65, 0.8; blocks since, counted from the end: one validation and five
    squares = 2 * 0.05**2 + np.var(since[1:]) * 5
    assert found.wobble == pytest.approx(math.sqrt(squares / (1 + 4)))
    assert found.looks == 6


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10), st.lists(st.integers(0, 9), min_size=6, max_size=6))
@pytest.mark.slow
def test_measure_fall__wobble_before_is_that_around_the_isotonic_regression(before, since):
    before, since = np.array(before) / 10, np.array(since) / 10
    curve = IsotonicRegression().fit_transform(np.arange(len(before)), before)
    squares = ((before - curve) ** 2).sum() + ((since[1:] - np.mean(since[1:])) ** 2).sum()
    df = len(before) - len(np.unique(curve.round(12))) + 4
    assert measure_fall(before, since).wobble == pytest.approx(math.sqrt(squares / df), abs=1e-6)


@pytest.mark.parametrize("history", [1, 3, 6])
@pytest.mark.parametrize("wobble", [0.02, 0.08])
def test_measure_fall__false_alarms_of_whole_trainings(history, wobble):
    assert rates(history, wobble, trainings=150, epochs=15) <= 0.08  # 0.03 expected


@pytest.mark.parametrize(("history", "least"), [(1, 0.8), (2, 0.9), (5, 0.9)])
def test_measure_fall__ten_points_are_found_within_five_epochs(history, least):
    assert rates(history, 0.02, trainings=150, epochs=5, harm=0.1) >= least


def test_measure_fall__a_training_that_still_improves_neither_fakes_harm_nor_hides_it():
    assert rates(6, 0.02, trainings=150, epochs=15, rise=0.01) <= 0.05
    assert rates(6, 0.02, trainings=150, epochs=5, rise=0.005, harm=0.1) >= 0.85
    steep = [0.2, 0.4, 0.5, 0.57, 0.62, 0.65, 0.67, 0.68, 0.69]  # is no wobble
    assert measure_fall(steep, [0.58, 0.59, 0.57, 0.58, 0.59]).is_significant


def test_measure_fall__harm_that_comes_late_is_found_too():
    rng = np.random.default_rng(3)
    accuracy = 0.7 + rng.normal(0, 0.02, 40)
    accuracy[25:] -= 0.15
    assert 20 < found_at(accuracy[:5], accuracy[5:]) <= 26


def test_measure_fall__one_validation_on_each_side_finds_only_a_huge_fall():
    assert not measure_fall([0.7], [0.35]).is_significant
    assert measure_fall([0.7], [0.25]).is_significant
    assert not measure_fall([0.7], [0.7]).is_significant
    assert measure_fall([0.7] * 6, [0.65]).is_significant  # a training that never moved
    assert measure_fall([0.7] * 6, [0.7]).p_value == 1


def test_measure_fall__only_the_last_validations_are_needed():
    rng = np.random.default_rng(0)
    since = rng.normal(0.7, 0.02, 50)
    whole, last = measure_fall([0.7, 0.72, 0.69], since), measure_fall([0.7, 0.72, 0.69], since[-20:], looks=50)
    assert whole == last
    assert whole.allowed < measure_fall([0.7, 0.72, 0.69], since[:20]).allowed


@pytest.mark.parametrize(("before", "since"), [([], [0.5]), ([0.5], []), ([0.5], [math.nan]), ([[0.5]], [0.5])])
def test_measure_fall__needs_accuracies(before, since):
    with pytest.raises(DataError, match="measure_fall"):
        measure_fall(before, since)
