"""A new last layer: parity with scikit-learn, planted shortcuts, masses of groups, blocks, choice of the penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lightning_failures.errors import DataError
from lightning_failures.interventions import head
from lightning_failures.interventions.head import fit_head, group_codes, group_masses, random_flags


def shortcut(n=1200, dim=100, classes=3, rare=0.05, seed=0):
    """Return features with a weak cue and a strong shortcut that is wrong for rare examples, labels, and these."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    odd = rng.random(n) < rare
    shown = np.where(odd, (labels + 1) % classes, labels)
    x = rng.normal(size=(n, dim))
    x[np.arange(n), labels] += 2.0
    x[np.arange(n), classes + shown] += 4.0
    return x.astype(np.float32), labels, odd


def worst(fit, x, labels, odd):
    right = fit.logits(x).argmax(axis=1) == labels
    return min(right[odd].mean(), right[~odd].mean())


@pytest.mark.parametrize("flagged", [True, False])
def test_fit_head__parity_with_scikit_learn(monkeypatch, flagged):
    monkeypatch.setattr(head, "_FINE", {"maxiter": 1000, "gtol": 1e-7})
    x, labels, odd = shortcut(n=600, dim=20)
    flags = odd if flagged else None
    fit = fit_head(x, labels, flags, penalties=(0.05,))
    code = group_codes(labels, flags)
    mass = group_masses(labels, code) if flagged else np.full(600, 1 / 600)
    scaler = StandardScaler().fit(x)
    # scikit-learn minimizes C * sum of weighted losses + |W|^2 / 2
    reference = LogisticRegression(C=1 / 0.05, tol=1e-8, max_iter=1000).fit(scaler.transform(x), labels, mass)
    logits = reference.decision_function(scaler.transform(x))
    found = fit.logits(x)
    assert found - found.mean(axis=1, keepdims=True) == pytest.approx(
        logits - logits.mean(axis=1, keepdims=True), abs=1e-2
    )


def test_fit_head__does_not_depend_on_the_precision_of_the_training():
    """On a CPU with instructions for bfloat16 this setting shortens products too."""
    x, labels, odd = shortcut(n=600)
    expected = fit_head(x, labels, odd)
    torch.set_float32_matmul_precision("medium")
    try:
        found = fit_head(x, labels, odd)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(found.weight, expected.weight)


def test_fit_head__flags_repair_a_planted_shortcut_and_controls_do_not():
    x, labels, odd = shortcut()
    test = shortcut(seed=1)
    flagged, uniform = fit_head(x, labels, odd), fit_head(x, labels)
    drawn = fit_head(x, labels, random_flags(labels, odd, seed=0))
    assert worst(flagged, *test) > 0.7
    assert worst(uniform, *test) < worst(flagged, *test) - 0.2
    assert worst(drawn, *test) < worst(flagged, *test) - 0.2


def test_fit_head__does_not_depend_on_blocks_or_on_what_is_kept(monkeypatch):
    x, labels, odd = shortcut(n=500)
    expected = fit_head(x, labels, odd).logits(x)
    monkeypatch.setattr(head, "_CELLS_AT_ONCE", 3000)
    assert fit_head(x, labels, odd).logits(x) == pytest.approx(expected, abs=0.02)
    monkeypatch.setattr(head, "_CELLS_IN_MEMORY", 0)
    assert fit_head(x, labels, odd).logits(x) == pytest.approx(expected, abs=0.02)


def test_fit_head__half_precision_and_a_constant_feature():
    x, labels, odd = shortcut()
    x[:, -1] = 7.0
    full, half = fit_head(x, labels, odd), fit_head(x.astype(np.float16), labels, odd)
    assert full.converged
    assert (full.weight[:, -1] == 0).all()
    assert (full.logits(x).argmax(1) == half.logits(x).argmax(1)).mean() > 0.99


def test_fit_head__repeats_itself():
    x, labels, odd = shortcut(n=400)
    assert (fit_head(x, labels, odd, seed=3).weight == fit_head(x, labels, odd, seed=3).weight).all()


def test_fit_head__chosen_penalty_is_near_the_best_of_a_test_set():
    x, labels, odd = shortcut(n=400)
    test = shortcut(n=4000, seed=1)
    chosen = fit_head(x, labels, odd)
    each = [worst(fit_head(x, labels, odd, penalties=(penalty,)), *test) for penalty in head.PENALTIES]
    assert chosen.penalty in head.PENALTIES
    assert len(chosen.worst_group) == len(chosen.mean_group) == len(head.PENALTIES)
    assert worst(chosen, *test) > max(each) - 0.05


def test_fit_head__sources_stay_together_in_a_fold():
    """Ten copies of each of few examples: with copies in other folds nearly no penalty looks best."""
    x, labels, odd = (np.repeat(part, 10, axis=0) for part in shortcut(n=60, dim=40, rare=0.2))
    apart = fit_head(x, labels, odd)
    together = fit_head(x, labels, odd, groups=np.repeat(np.arange(60), 10))
    assert together.penalty > apart.penalty


def test_fit_head__classes_without_examples_have_a_row():
    x, labels, _ = shortcut(n=300)
    assert fit_head(x, labels, classes=7, penalties=(0.1,)).weight.shape == (7, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(60) % 3 - 1}, "labels must be"),
        ({"classes": 2}, "labels must be 0 ... 1"),
        ({"penalties": (0.0, 1.0)}, "penalties must be > 0"),
        ({"flagged": np.ones(5)}, "flagged must have shape"),
        ({"features": np.full((60, 4), np.nan)}, "finite"),
        ({"features": np.empty((0, 4)), "labels": np.empty(0, dtype=int), "flagged": None}, "at least one example"),
    ],
)
def test_fit_head__refuses(change, message):
    given = {"features": np.random.default_rng(0).normal(size=(60, 4)), "labels": np.arange(60) % 3, "flagged": None}
    with pytest.raises(DataError, match=message):
        fit_head(**(given | change))


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    seed=st.integers(0, 99),
)
def test_group_masses__classes_and_groups_of_a_class_are_equal(labels, seed):
    labels = np.array(labels)
    flagged = np.random.default_rng(seed).random(len(labels)) < 0.4
    code = group_codes(labels, flagged)
    mass = group_masses(labels, code)
    assert mass.sum() == pytest.approx(1)
    per_class = np.bincount(labels, weights=mass)[np.unique(labels)]
    assert per_class == pytest.approx(np.full(len(per_class), per_class[0]))
    for k in np.unique(labels):
        groups = [mass[code == name].sum() for name in np.unique(code[labels == k])]
        assert groups == pytest.approx([groups[0]] * len(groups))


@given(st.integers(0, 99))
def test_random_flags__as_many_of_each_class(seed):
    rng = np.random.default_rng(seed)
    labels, flagged = rng.integers(0, 4, 60), rng.random(60) < 0.3
    drawn = random_flags(labels, flagged, seed=seed)
    assert (np.bincount(labels[drawn], minlength=4) == np.bincount(labels[flagged], minlength=4)).all()
