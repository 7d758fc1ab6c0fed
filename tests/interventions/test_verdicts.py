"""Verdicts: right about planted effects and about nothing, and silent where nothing can be said."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.verdicts import (
    assign_classes,
    fall_verdict,
    not_measured,
    paired_verdict,
    randomized_verdict,
    should_roll_back,
)


def trainings(rng, *, pairs=3, size=300, of_group=1, accuracy=0.5, effect=0.0, noise=0.03, group_spread=0.2):
    """Outcomes of ``pairs`` trainings an arm: the accuracy of a training varies, so do groups and single examples."""
    groups = np.arange(size) // of_group
    ease = rng.normal(0, group_spread, size=groups.max() + 1)[groups]
    gains = effect * (1 + rng.normal(0, 1, size=groups.max() + 1)[groups])
    arms = []
    for gain in (gains, 0.0):
        level = accuracy + gain + rng.normal(0, noise, size=(pairs, 1)) + ease
        arms.append(rng.random((pairs, size)) < level)
    return arms[0], arms[1], groups


def outcomes(trials, pairs, **options):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(trials):
        with_it, without, groups = trainings(rng, pairs=pairs, **options)
        found.append(paired_verdict(with_it, without, groups=groups, resamples=400).outcome)
    return [found.count(outcome) / trials for outcome in ("helped", "no evidence", "hurt")]


# -- forks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [2, 3, 5])
def test_paired__noise_of_training_is_no_effect(pairs):
    helped, _, hurt = outcomes(100, pairs, noise=0.05)
    assert helped + hurt <= 0.08


def test_paired__groups_are_not_so_many_independent_examples():
    # one group of ten changes together: without groups the interval is far too narrow
    rng = np.random.default_rng(0)
    wrong = {True: 0, False: 0}
    for _ in range(100):
        change = np.repeat(rng.integers(-1, 2, size=40), 10)
        without, with_it = np.tile(change == -1, (2, 1)), np.tile(change == 1, (2, 1))
        for grouped in wrong:
            groups = np.arange(400) // 10 if grouped else None
            wrong[grouped] += paired_verdict(with_it, without, groups=groups, resamples=400).outcome != "no evidence"
    assert wrong[True] <= 10
    assert wrong[False] >= 35


def test_paired__an_effect_is_found():
    helped, _, hurt = outcomes(40, 3, effect=0.2)
    assert helped >= 0.9
    assert hurt == 0
    assert outcomes(40, 3, effect=-0.2)[2] >= 0.9


def test_paired__interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        with_it, without, groups = trainings(rng, effect=0.1, of_group=3, group_spread=0.05)
        low, high = paired_verdict(with_it, without, groups=groups, resamples=400).interval
        covered += low <= 0.1 <= high
    assert covered >= 0.93 * 150


def test_paired__one_source_of_error_at_a_time():
    # no noise between trainings: the interval of a mean of independent examples
    rng = np.random.default_rng(2)
    one = rng.random(2000) < 0.5
    other = np.where(rng.random(2000) < 0.3, rng.random(2000) < 0.5, one)
    found = paired_verdict(np.tile(other, (3, 1)), np.tile(one, (3, 1)), resamples=5_000)
    change = other.astype(float) - one
    half = 1.96 * change.std(ddof=1) / np.sqrt(2000)
    assert found.interval == pytest.approx((change.mean() - half, change.mean() + half), abs=0.003)
    assert found.noise == pytest.approx(0, abs=1e-12)
    # all examples alike: Student's test of two samples
    with_it, without = np.zeros((2, 4, 1000), dtype=bool)
    for row, (high, low) in enumerate([(560, 500), (575, 520), (590, 480), (540, 510)]):
        with_it[row, :high], without[row, :low] = True, True
    found = paired_verdict(with_it, without, groups=np.arange(1000) % 10, resamples=10_000)
    test = stats.ttest_ind(with_it.mean(1), without.mean(1)).confidence_interval(0.95)
    assert found.interval == pytest.approx((test.low, test.high), abs=0.004)


def test_paired__equal_forks_are_no_evidence():
    rng = np.random.default_rng(3)
    outcome = rng.random(100) < 0.5
    one, many = paired_verdict(outcome, outcome), paired_verdict(np.tile(outcome, (4, 1)), np.tile(outcome, (4, 1)))
    assert one.outcome == many.outcome == "no evidence"
    assert one.interval == many.interval == (0, 0)
    assert (one.pairs, many.pairs) == (1, 4)


def test_paired__one_pair_says_nothing():
    found = paired_verdict(np.ones(500, dtype=bool), np.zeros(500, dtype=bool))
    assert found.outcome == "not measured"
    assert found.difference == 1
    assert "one pair" in found.sentence


@pytest.mark.parametrize(("size", "of_group"), [(0, 1), (9, 1), (90, 10)])
def test_paired__too_few_examples_or_groups(size, of_group):
    right = np.ones((3, size), dtype=bool)
    found = paired_verdict(right, ~right, groups=np.arange(size) // of_group)
    assert found.outcome == "not measured"
    assert str(size) in found.sentence
    assert "too few" in found.sentence or "9 groups" in found.sentence


def test_paired__sentence_and_plain_values():
    with_it, without, groups = trainings(np.random.default_rng(4), effect=0.2)
    found = paired_verdict(torch.from_numpy(with_it), torch.from_numpy(without), groups=groups, what="flagged examples")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["interval"] == list(found.interval)
    assert told["outcome"] == "helped"
    assert found.sentence.startswith("Helped: of 300")
    for part in ("300 flagged examples", f"{found.difference:+.3f}", f"{found.interval[0]:+.3f}", "3 pairs"):
        assert part in found.sentence


def test_paired__same_seed_same_interval_and_no_global_numbers():
    arms = trainings(np.random.default_rng(5))
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert paired_verdict(*arms[:2]) == paired_verdict(*arms[:2])
    assert paired_verdict(*arms[:2]) != paired_verdict(*arms[:2], seed=1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@given(st.integers(2, 4), st.integers(10, 60), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_paired__mirrored_and_blind_to_order(pairs, size, seed):
    rng = np.random.default_rng(seed)
    with_it, without = rng.random((2, pairs, size)) < 0.5
    there, back = paired_verdict(with_it, without, resamples=200), paired_verdict(without, with_it, resamples=200)
    assert there.difference == pytest.approx(-back.difference)
    assert there.interval[0] <= there.difference <= there.interval[1]
    shuffled = rng.permutation(pairs)
    same = paired_verdict(with_it[shuffled], without, resamples=200)
    assert same.interval == pytest.approx(there.interval)


def test_paired__bad_input():
    right = np.ones((2, 20), dtype=bool)
    with pytest.raises(DataError, match="shape"):
        paired_verdict(right, right[:, :10])
    with pytest.raises(DataError, match="groups"):
        paired_verdict(right, right, groups=np.arange(3))
    with pytest.raises(DataError, match="boolean"):
        paired_verdict(right * 3, right)
    with pytest.raises(DataError, match="shape"):
        paired_verdict(right[None], right[None])
    with pytest.raises(ConfigurationError, match="level"):
        paired_verdict(right, right, level=1)
    with pytest.raises(ConfigurationError, match="resamples"):
        paired_verdict(right, right, resamples=3)


# -- classes by lot ------------------------------------------------------------------------------------------


def test_assign__half_of_the_classes_whatever_their_order():
    names = [f"class {k}" for k in range(41)]
    lot = assign_classes(names, seed=3)
    assert lot.sum() == 20
    order = np.random.default_rng(0).permutation(41)
    np.testing.assert_array_equal(assign_classes([names[k] for k in order], seed=3), lot[order])
    assert (assign_classes(names, seed=4) != lot).any()
    share = np.mean([assign_classes(names, seed=s) for s in range(200)], axis=0)
    assert 0.35 < share.min() < share.max() < 0.65
    with pytest.raises(DataError, match="differ"):
        assign_classes(["a", "a"])


def lottery(rng, classes=24, effect=0.0, noise=0.08):
    lot = rng.permutation(np.arange(classes) < classes // 2)
    before = rng.uniform(0.2, 0.7, classes)
    return before, before + 0.1 + effect * lot + rng.normal(0, noise, classes), lot


def test_randomised__right_about_nothing_and_about_an_effect():
    rng = np.random.default_rng(0)
    nothing = [randomized_verdict(*lottery(rng), permutations=999).outcome for _ in range(150)]
    assert 1 - nothing.count("no evidence") / 150 <= 0.1
    some = [randomized_verdict(*lottery(rng, effect=0.2), permutations=999) for _ in range(60)]
    assert sum(found.outcome == "helped" for found in some) >= 55
    assert sum(found.interval[0] <= 0.2 <= found.interval[1] for found in some) >= 54


def test_randomised__few_assignments_are_all_gone_through():
    before, after, _ = lottery(np.random.default_rng(1), classes=21)
    lot = np.arange(21) < 3  # C(21, 3) = 1330
    after += 0.1 * lot
    found = randomized_verdict(before, after, lot)
    assert found == randomized_verdict(before, after, lot, seed=5, permutations=100)  # nothing is drawn
    change = after - before
    masks = np.array([np.isin(np.arange(21), rows) for rows in itertools.combinations(range(21), 3)])

    def null(values):
        return np.array([values[mask].mean() - values[~mask].mean() for mask in masks])

    assert found.p_value == pytest.approx(np.mean(np.abs(null(change)) >= abs(found.difference) - 1e-12))
    # at each limit the one-sided test is on the verge of rejecting
    for limit, sign in zip(found.interval, (1, -1), strict=True):
        for shift, rejects in ((-1e-6, True), (1e-6, False)):
            rest = change - (limit + sign * shift) * lot
            p = np.mean(sign * null(rest) >= sign * (rest[lot].mean() - rest[~lot].mean()) - 1e-12)
            assert (p <= 0.025) == rejects


def test_randomised__too_few_classes():
    before, after, lot = lottery(np.random.default_rng(2), classes=25)
    before[:6] = np.nan
    found = randomized_verdict(before, after, lot)
    assert found.outcome == "not measured"
    assert "takes 20" in found.sentence
    assert randomized_verdict(before, after, np.zeros(25, dtype=bool)).outcome == "not measured"
    with pytest.raises(DataError, match="treated"):
        randomized_verdict(before, after, lot[:4])
    with pytest.raises(DataError, match="after"):
        randomized_verdict(before, after[:4], lot)


# -- rollback ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "outcome"), [(0.9, "no evidence"), (0.97, "no evidence"), (0.88, "no evidence"), (0.8, "hurt")]
)
def test_roll_back__only_for_a_fall_beyond_doubt(now, outcome):
    rank = np.random.default_rng(0).permutation(1000) / 1000
    found = should_roll_back(rank < 0.9, rank < now)
    assert found.outcome == outcome
    assert found.difference == pytest.approx(now - 0.9)
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_roll_back__groups_margin_and_too_few():
    rank = np.arange(200) / 200
    before, after = rank < 0.9, rank < 0.8
    assert should_roll_back(before, after).outcome == "hurt"
    assert should_roll_back(before, after, groups=np.arange(200) // 20).outcome == "no evidence"  # one group of ten
    assert should_roll_back(before, after, margin=0.09).outcome == "no evidence"
    assert should_roll_back(before[:8], after[:8]).outcome == "not measured"
    with pytest.raises(ConfigurationError, match="margin"):
        should_roll_back(before, after, margin=1.0)
    with pytest.raises(DataError, match="after_correct"):
        should_roll_back(before, after[:5])


def test_fall_verdict__wobble_margin_groups_and_what_was_not_graded():
    rank = np.arange(200) / 200
    before = np.stack([rank < rate for rate in (0.9, 0.89, 0.91, 0.9, 0.9, 0.89)]).astype(float)
    since = np.stack([rank < rate for rate in (0.8, 0.79, 0.81)]).astype(float)
    found = fall_verdict(before, since)
    assert (found.outcome, found.examples, found.groups) == ("hurt", 200, 200)
    assert found.difference == pytest.approx(-0.1, abs=0.01)
    assert found.noise < 0.02
    assert "decision part" in found.sentence
    assert fall_verdict(before, since, groups=np.arange(200) // 20).outcome == "no evidence"  # one group of ten
    assert fall_verdict(before, since, margin=0.12).outcome == "no evidence"
    assert fall_verdict(before, before).outcome == "no evidence"
    wobbling = np.stack([rank < rate for rate in (0.7, 0.95, 0.8, 0.9, 0.72, 0.93)]).astype(float)
    assert fall_verdict(wobbling, since).outcome == "no evidence"
    # examples that were not graded are left out; a validation without any of the others is not counted
    partial = before.copy()
    partial[:, 190:] = np.nan
    partial[0] = np.nan
    assert fall_verdict(partial, since).examples == 190
    assert fall_verdict(before[:, :8], since[:, :8]).outcome == "not measured"
    assert fall_verdict(np.full((2, 50), np.nan), since[:, :50]).outcome == "not measured"
    with pytest.raises(ConfigurationError, match="margin"):
        fall_verdict(before, since, margin=1.0)
    with pytest.raises(DataError, match="since"):
        fall_verdict(before, since[:, :5])


def test_not_measured__is_a_verdict():
    found = not_measured("no class has a pattern")
    assert found.to_dict()["outcome"] == "not measured"
    assert found.interval is None
