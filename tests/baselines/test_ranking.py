"""Rankings by class: cross-fitted, blind to what they rank, compared on the classes that all of them know."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.baselines import compare_rankings, hardness_by_class, overlap_of_rankings
from lightning_failures.baselines.ranking import FINDERS
from lightning_failures.errors import DataError


def planted(seed: int = 0, n: int = 400):
    """Two classes; a quarter of each lies apart, and fails."""
    rng = np.random.default_rng(seed)
    labels, hard = np.arange(n) % 2, rng.random(n) < 0.25
    x = rng.normal(size=(n, 16)) + 5 * hard[:, None] * (np.arange(16) == 3 + labels[:, None])
    failed = np.where(rng.random(n) < 0.1, ~hard, hard)
    return x, labels, failed, hard


@pytest.mark.parametrize("name", list(FINDERS))
def test_hardness__finds_what_was_planted_in_examples_it_was_not_fitted_on(name):
    x, labels, failed, hard = planted()
    own = hardness_by_class(FINDERS[name], x, labels, failed)
    unseen, of_unseen, _, hard_unseen = planted(1)
    new = hardness_by_class(FINDERS[name], x, labels, failed, new=(unseen, of_unseen))
    (first,) = compare_rankings({name: own}, labels, {"apart": hard}, top=[20])
    (second,) = compare_rankings({name: new}, of_unseen, {"apart": hard_unseen}, top=[20])
    assert first.precision == second.precision == 1.0
    assert first.chance == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("name", list(FINDERS))
def test_hardness__of_noise_says_nothing_about_failures(name):
    """Cross-fitted on noise, the hardest are wrong no more often than the others."""
    shares = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        failed = rng.random(300) < 0.3
        hardness = hardness_by_class(FINDERS[name], rng.normal(size=(300, 8)), np.zeros(300, int), failed)
        (score,) = compare_rankings({name: hardness}, np.zeros(300, int), {"failed": failed}, top=[60])
        shares.append(score.precision - score.chance)
    assert abs(np.mean(shares)) < 0.05


def test_hardness__classes_without_enough_failures_are_unknown():
    x, labels, failed, _ = planted()
    failed[labels == 1] = False
    hardness = hardness_by_class(FINDERS["clusters"], x, labels, failed)
    assert np.isnan(hardness[labels == 1]).all()
    assert np.isfinite(hardness[labels == 0]).all()


def test_compare__counts_only_classes_that_all_methods_rank():
    labels = np.repeat([0, 1, 2], 10)
    mask = np.tile(np.arange(10) < 3, 3)
    mask[labels == 2] = True  # nothing to tell apart
    full = np.tile(-np.arange(10.0), 3)
    some = np.where(labels == 1, np.nan, full[::-1])
    found = {one.method: one for one in compare_rankings({"a": full, "b": some}, labels, {"m": mask}, top=[3])}
    assert (found["a"].classes, found["a"].precision, found["b"].precision) == (1, 1.0, 0.0)
    assert found["a"].chance == pytest.approx(0.3)
    assert compare_rankings({}, labels, {"m": mask}) == ()
    with pytest.raises(DataError, match="b has not"):
        compare_rankings({"a": full, "b": full[:5]}, labels, {"m": mask})


def test_overlap__share_of_the_hardest_that_two_methods_share():
    labels = np.zeros(100, dtype=int)
    one = np.arange(100.0)
    other = np.where(np.arange(100) >= 75, one, -one)
    found = overlap_of_rankings({"a": one, "b": other, "c": np.full(100, np.nan)}, labels, top=50)
    assert found == {("a", "b"): 0.5}
