import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.additional import (
    _most_spread,
    _p_value,
    _rotate_to_discriminant,
    additional_directions,
)
from lightning_failures.directions.svm import SVMFit, fit_scaled
from lightning_failures.stats.folds import stratified_group_folds


def _subpopulations(shares, *, n=250, dim=32, shift=4.0, high=0.8, low=0.1, seed=0):
    """Return (x, correct, bears): subpopulation k is shifted along axis k and fails more often."""
    rng = np.random.default_rng([77, seed])
    which = rng.random(n)[:, None]
    edges = np.cumsum([0.0, *shares])
    bears = (which >= edges[:-1]) & (which < edges[1:])
    x = rng.normal(size=(n, dim))
    x[:, : len(shares)] += shift * bears
    failed = rng.random(n) < np.where(bears.any(axis=1), high, low)
    return x, ~failed, bears


def _one_linear_mode(*, n=250, dim=32, seed=0):
    rng = np.random.default_rng([78, seed])
    x = rng.normal(size=(n, dim))
    return x, 2.0 * x[:, 0] + rng.logistic(size=n) > -1.2, None


def _classes(make, count, **options):
    parts = [make(seed=seed, **options) for seed in range(count)]
    x, correct = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return x, np.repeat(np.arange(count), len(parts[0][0])), correct, [part[2] for part in parts]


def _found(x, labels, correct, **options):
    """Return the number of classes with an additional direction."""
    directions = fit_failure_directions(x, labels, correct, n_directions=2, permutations=199, **options)
    return len(directions.further[0].classes) if directions.further else 0


@pytest.mark.parametrize(("make", "options"), [(_subpopulations, {"shares": (0.3,)}), (_one_linear_mode, {})])
def test_additional_directions__one_mode_has_no_second(make, options):
    x, labels, correct, _ = _classes(make, 60, **options)
    assert _found(x, labels, correct) <= 7, "5 % of 60 is 3; 8 would have a chance of 1 %"


def test_additional_directions__two_modes_have_two():
    x, labels, correct, bears = _classes(_subpopulations, 40, shares=(0.2, 0.2))
    directions = fit_failure_directions(x, labels, correct, n_directions=2, permutations=199)
    second = directions.further[0]
    assert len(second.classes) >= 32, "80 % of 40"
    near = []
    for k, label in enumerate(second.classes.tolist()):
        weight = -second.weight[k] / second.weight[k].norm()
        mode = int(weight[:2].argmax())
        near.append(float(weight[mode]))
        values, failed = second.out_of_fold.numpy()[labels == label], ~correct[labels == label]
        assert values[failed & bears[label][:, mode]].mean() < 0, "it flags the failures of its mode"
        assert second.p_value[k] <= 0.05
        assert second.cv_score[k] > 0.6
    assert np.median(near) > 0.77, "of its mode; with the difference of the two modes it would be 0.71"


def test_additional_directions__three_modes_have_three():
    x, labels, correct, _ = _classes(_subpopulations, 10, shares=(0.17, 0.17, 0.17), n=800, dim=16, shift=5.0)
    directions = fit_failure_directions(x, labels, correct, n_directions=4, permutations=199)
    assert len(directions.further[1].classes) >= 8
    assert len(directions.further) == 2 or len(directions.further[2].classes) <= 2


@pytest.mark.slow
def test_additional_directions__rates_over_many_trials():
    for make, options in ((_subpopulations, {"shares": (0.3,)}), (_one_linear_mode, {})):
        assert _found(*_classes(make, 100, n=400, **options)[:3]) <= 5, "5 % of 100"
    assert _found(*_classes(_subpopulations, 80, n=400, shares=(0.15, 0.15))[:3]) >= 64


def test_additional_directions__sources_stay_whole():
    """Copies of an example are no evidence; treated as independent they would show a second mode of a single one."""
    x, labels, correct, _ = _classes(_subpopulations, 30, shares=(0.3,), n=60, dim=8)
    copies = np.repeat(np.arange(len(x)), 6)
    noise = 1e-3 * np.random.default_rng(0).normal(size=(len(copies), 8))
    data = x[copies] + noise, labels[copies], correct[copies]
    assert _found(*data, groups=copies) <= 4
    assert _found(*data) >= 8


def test_additional_directions__the_first_stays_as_it_is():
    x, correct, _ = _subpopulations((0.2, 0.2))
    labels = np.zeros(len(x), dtype=int)
    alone = fit_failure_directions(x, labels, correct, permutations=199)
    with_others = fit_failure_directions(x, labels, correct, permutations=199, n_directions=3)
    assert with_others.further
    for name in ("weight", "bias", "c", "cv_score", "p_value", "out_of_fold"):
        assert torch.equal(getattr(alone, name), getattr(with_others, name)), name


def test_additional_directions__same_seed_same_answer_and_arrays_untouched():
    x, correct, _ = _subpopulations((0.2, 0.2))
    fold = stratified_group_folds(~correct, np.arange(len(x)))
    first = fit_scaled(x, correct, fold)
    before = x.copy(), correct.copy()
    x.flags.writeable = correct.flags.writeable = False
    options = {"fit": fit_scaled, "most": 2, "permutations": 99, "seed": (0, 1)}
    runs = [additional_directions(first, x, correct, np.arange(len(x)), fold, **options) for _ in range(2)]
    assert len(runs[0]) == len(runs[1]) >= 1
    assert np.array_equal(x, before[0])
    assert np.array_equal(correct, before[1])
    for (a, p), (b, q) in zip(*runs, strict=True):
        assert p == q
        assert np.array_equal(a.weight, b.weight)
        assert np.array_equal(a.out_of_fold, b.out_of_fold)
        assert not np.isnan(a.out_of_fold).any()


@pytest.mark.parametrize("failures", [0, 1, 2, 10, 19, 20])
def test_additional_directions__few_failures_end_the_search(failures):
    rng = np.random.default_rng(failures)
    x = rng.normal(size=(60, 8))
    correct = np.arange(60) >= failures
    first = SVMFit(rng.normal(size=8), 0.0, 1.0, 0.5, 0.1, rng.normal(size=60))
    fold = np.arange(60) % 2
    found = additional_directions(
        first, x, correct, np.arange(60), fold, fit=fit_scaled, most=1, permutations=49, seed=(0,)
    )
    assert found == [] or failures == 20


@pytest.mark.parametrize("spoil", ["constant", "copies", "one source", "first without weight"])
def test_additional_directions__degenerate_data(spoil):
    x, correct, _ = _subpopulations((0.2, 0.2), n=120, dim=6)
    sources = np.arange(120)
    fold = stratified_group_folds(~correct, sources)
    first = fit_scaled(x, correct, fold)
    if spoil == "constant":
        x[:, 2:] = 0.0
    if spoil == "copies":
        x = np.tile(x[:1], (120, 1))
    if spoil == "one source":
        sources = np.where(correct, sources, -1)
    if spoil == "first without weight":
        first = dataclasses.replace(first, weight=np.zeros(6), out_of_fold=np.zeros(120))
    found = additional_directions(first, x, correct, sources, fold, fit=fit_scaled, most=3, permutations=49, seed=(0,))
    assert all(np.isfinite(fitted.out_of_fold).all() for fitted, _ in found)
    assert spoil in ("constant", "first without weight") or not found


def test_most_spread__is_the_leading_eigenvector():
    for n, dim in ((300, 40), (60, 200)):
        x, correct, _ = _subpopulations((0.2, 0.2), n=n, dim=dim)
        between = x[correct].mean(axis=0) - x[~correct].mean(axis=0)
        off = np.eye(dim) - np.outer(between, between) / (between @ between)
        covariances = [np.cov((x[side] @ off).T, ddof=0) for side in (~correct, correct)]
        leading = np.linalg.eigh(covariances[0] - covariances[1])[1][:, -1]
        assert abs(leading @ _most_spread(x, correct)) > 0.999


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(2, 4), gap=st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_turned__means_are_the_same_across(seed, k, gap):
    rng = np.random.default_rng(seed)
    correct = np.arange(50) < 30
    values = rng.normal(size=(k, 50)) + gap * rng.normal(size=(k, 1)) * correct
    index, across = _rotate_to_discriminant(values, correct)
    assert across[correct].mean() == pytest.approx(across[~correct].mean(), abs=1e-8)
    assert index[correct].mean() >= index[~correct].mean()


def test_p_value__asks_for_both_ends():
    rng = np.random.default_rng(0)
    n = 600
    index, across, sources = rng.normal(size=n), rng.normal(size=n), np.arange(n)
    both = rng.random(n) < np.where(np.abs(across) > 1, 0.7, 0.2)
    one = rng.random(n) < np.where(across > 0.7, 0.8, 0.2)
    gentle = rng.random(n) < 1 / (1 + np.exp(1 - 2 * across))
    assert _p_value(index, across, ~both, sources, 199, np.random.default_rng(1)) == pytest.approx(1 / 200)
    assert _p_value(index, across, ~one, sources, 199, np.random.default_rng(1)) > 0.05
    assert _p_value(index, across, ~gentle, sources, 199, np.random.default_rng(1)) > 0.05


def test_p_value__holds_its_level_without_a_pattern():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):
        values, failed = rng.normal(size=(2, 100)), rng.random(100) < 0.3
        p.append(_p_value(*values, ~failed, np.arange(100), 99, rng))
    assert np.mean(np.array(p) <= 0.05) <= 0.05
