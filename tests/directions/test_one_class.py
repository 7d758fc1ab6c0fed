"""Labels in doubt leave the fit, the score and the test, but keep their decision values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.directions.one_class import MIN_UNDOUBTED
from lightning_failures.directions.result import EFFECTS, join_directions
from lightning_failures.errors import ConfigurationError
from lightning_failures.stats.agreement import auc, positive_agreement

DIM = 8


def world(seed, *, n=400, wrong=0.1, subpopulation=0.25, inside=0.7, outside=0.05):
    """Two classes apart along axis 0; the model errs inside a subpopulation along axis 1, and on every wrong label."""
    rng = np.random.default_rng(seed)
    true = np.arange(2 * n) % 2
    hard = rng.random(2 * n) < subpopulation
    x = rng.normal(size=(2 * n, DIM))
    x[:, 0] += 5.0 * true
    x[:, 1] += 2.5 * hard
    prediction = np.where(rng.random(2 * n) < np.where(hard, inside, outside), 1 - true, true)
    flipped = rng.random(2 * n) < wrong
    labels = np.where(flipped, 1 - true, true)
    return x, labels, prediction == labels, hard, flipped


def fit(x, labels, correct, **options):
    return fit_failure_directions(x, labels, correct, **({"permutations": 0} | options))


def test_doubted__wrong_labels_leave_the_fit_and_the_subpopulation_stays():
    x, labels, correct, hard, flipped = world(0)
    directions = fit(x, labels, correct, doubted="failures")
    doubted = directions.doubted.numpy()
    assert not doubted[correct].any()
    assert doubted[flipped & ~correct].mean() > 0.9
    assert doubted[hard & ~flipped & ~correct].mean() < 0.1
    assert torch.equal(directions.doubted, (directions.label_margin < 0) & torch.from_numpy(~correct))


def test_doubted__the_direction_turns_to_the_subpopulation():
    """Without doubts the wrong labels turn it towards the other class, axis 0."""
    gained = []
    for seed in range(5):
        x, labels, correct, *_ = world(seed, wrong=0.15)
        along = {}
        for doubted in (None, "failures", "examples"):
            weight = fit(x, labels, correct, doubted=doubted).weight
            along[doubted] = float((-weight[:, 1] / weight.norm(dim=1)).mean())
        gained.append([along["failures"] - along[None], along["examples"] - along[None]])
    assert np.min(gained) > 0.1


def test_doubted__every_example_keeps_a_value_that_it_had_no_part_in():
    x, labels, correct, *_ = world(1)
    for doubted in ("failures", "examples"):
        directions = fit(x, labels, correct, doubted=doubted)
        assert bool(directions.out_of_fold.isfinite().all())
        assert bool(directions.doubted.any())
        changed = correct.copy()
        one = int(directions.doubted.nonzero()[0])
        x_changed = x.copy()
        x_changed[one, 3] += 0.01  # an example that is not fitted cannot change the fit (phi is kept)
        again = fit(x_changed, labels, changed, doubted=doubted, reference=x)
        before = fit(x, labels, correct, doubted=doubted, reference=x)
        if torch.equal(again.doubted, before.doubted):
            assert torch.allclose(again.weight, before.weight, atol=1e-5)


def test_doubted__nothing_in_doubt_changes_nothing():
    x, labels, correct, *_ = world(2, wrong=0.0)
    x[:, 0] += 20 * labels
    c = {"cs": (1.0,), "permutations": 99}  # without doubts C is larger
    plain, doubting = (fit(x, labels, correct, doubted=doubted, **c) for doubted in (None, "failures"))
    assert not doubting.doubted.any()
    for name in ("weight", "bias", "cv_score", "p_value", "out_of_fold", "effect_interval"):
        assert torch.equal(getattr(plain, name), getattr(doubting, name))
    assert bool(plain.label_margin.isnan().all())


@pytest.mark.slow
@pytest.mark.parametrize("doubted", ["failures", "examples"])
def test_doubted__p_values_of_noise_are_uniform(doubted):
    """Failures are independent of the embedding, but a part of the labels is wrong, and overlapping classes add doubts.

    To leave doubted failures out of the test and doubted successes in would find a pattern in every class.
    """
    p_values = []
    for seed in range(150):
        rng = np.random.default_rng([7, seed])
        labels = np.arange(240) % 2
        x = rng.normal(size=(240, DIM))
        x[:, 0] += 1.5 * labels
        correct = rng.random(240) > 0.35
        p_values += fit(x, labels, correct, doubted=doubted, permutations=199).p_value.tolist()
    found = np.mean(np.array(p_values) <= 0.05)
    assert found <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(p_values))
    assert 0.4 < np.mean(np.array(p_values) <= 0.5) < 0.6


def test_doubted__published_procedure_is_unchanged():
    x, labels, correct, *_ = world(3)
    one, other = (fit(x, labels, correct, selection="published", doubted=doubted) for doubted in (None, "failures"))
    assert torch.equal(one.weight, other.weight)
    assert not other.doubted.any()


def test_doubted__a_class_whose_failures_are_all_in_doubt_says_so():
    x, labels, correct, *_ = world(4, subpopulation=0.0, outside=0.0, wrong=0.1)
    directions = fit(x, labels, correct, doubted="failures")
    assert set(directions.skipped) == {0, 1}
    for reason in directions.skipped.values():
        assert "of the examples whose label is not in doubt" in reason
        assert f"at least {MIN_UNDOUBTED}" in reason


def test_doubted__other_values_are_errors():
    x, labels, correct, *_ = world(5)
    with pytest.raises(ConfigurationError, match="doubted must be"):
        fit(x, labels, correct, doubted="all")


def test_doubted__sources_stay_together():
    """Ten copies of each image: a wrong label among copies of one source is doubted in all of them."""
    x, labels, correct, _, flipped = world(6, n=60)
    x = np.repeat(x, 10, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(1200, DIM))
    labels, correct, flipped = (np.repeat(column, 10) for column in (labels, correct, flipped))
    directions = fit(x, labels, correct, doubted="failures", groups=np.repeat(np.arange(120), 10))
    assert directions.doubted.numpy()[flipped & ~correct].mean() > 0.8


def test_explained__is_near_one_for_wrong_labels_and_low_for_a_subpopulation():
    x, labels, correct, *_ = world(7, subpopulation=0.0, outside=0.05, wrong=0.2)
    assert fit(x, labels, correct, doubted="failures").explained_overall > 0.8
    x, labels, correct, *_ = world(7, wrong=0.0)
    directions = fit(x, labels, correct, doubted="failures")
    assert directions.explained_overall < 0.4
    assert directions.explained.shape == (2,)
    assert fit(x, labels, correct, doubted=None).explained_overall is None, "without a probe"


def test_explained__by_hand():
    x, labels, correct, *_ = world(8)
    directions, whole = (fit(x, labels, correct, doubted=doubted) for doubted in ("failures", None))
    margin, value = [], []
    for k in range(2):
        mine = labels == k
        margin.append(auc(directions.label_margin.numpy()[mine], correct[mine]))
        value.append(auc(whole.out_of_fold.numpy()[mine], correct[mine]))
    assert directions.margin_auc.tolist() == pytest.approx(margin)
    assert directions.whole_auc.tolist() == pytest.approx(value, abs=0.03), "of other folds"
    expected = (np.mean(margin) - 0.5) / (directions.whole_auc.mean() - 0.5)
    assert directions.explained_overall == pytest.approx(float(expected))


def test_explained__is_undefined_where_values_tell_nothing():
    rng = np.random.default_rng(9)
    noise = fit(rng.normal(size=(4000, DIM)), np.arange(4000) % 2, rng.random(4000) > 0.4, doubted="failures")
    assert noise.explained_overall is None
    assert noise.explained[noise.whole_auc < 0.55].isnan().all()


def test_effect__of_a_planted_subpopulation():
    x, labels, correct, *_ = world(10, wrong=0.0)
    directions = fit(x, labels, correct)
    for k in range(2):
        flagged = (directions.out_of_fold < 0).numpy()[labels == k]
        failed = ~correct[labels == k]
        assert float(directions.effect[k]) == pytest.approx(failed[flagged].mean() - failed[~flagged].mean())
        low, high = directions.effect_interval[k].tolist()
        assert low < float(directions.effect[k]) < high
        assert low > 0.1


def test_further_directions__doubted_examples_have_values():
    rng = np.random.default_rng(11)
    x, labels, correct, *_ = world(11, n=800)
    x[:, 2] += np.where((rng.random(1600) < 0.2) & ~correct, 6.0, 0.0)
    directions = fit(x, labels, correct, doubted="failures", n_directions=3, permutations=99)
    assert directions.doubted.any()
    for rank in directions.further:
        classes = torch.isin(torch.from_numpy(labels), rank.classes)
        assert bool(rank.out_of_fold[classes].isfinite().all())


def test_load__a_file_of_the_version_before(tmp_path):
    x, labels, correct, *_ = world(12)
    now = fit(x, labels, correct, doubted="failures")
    now.save(tmp_path / "now.safetensors")
    with safe_open(tmp_path / "now.safetensors", framework="pt") as file:
        metadata = file.metadata()
        new = ("label_margin", "doubted", *EFFECTS)
        kept = {name: file.get_tensor(name) for name in file.keys() if name.split(".")[1] not in new}  # noqa: SIM118
    save_file(kept, tmp_path / "before.safetensors", metadata)
    before = FailureDirections.load(tmp_path / "before.safetensors")
    assert torch.equal(before.weight, now.weight)
    assert bool(before.effect.isnan().all())
    assert before.effect_interval.shape == (2, 2)
    assert before.explained_overall is None
    assert not before.doubted.any()
    assert len(before.label_margin) == len(labels)


def test_join__keeps_margins_and_doubts():
    x, labels, correct, *_ = world(13)
    whole = fit(x, labels, correct, doubted="failures", reference=x)
    rows = [np.flatnonzero(labels == k) for k in (1, 0)]
    margins = whole.label_margin.numpy()
    parts = [fit(x[r], labels[r], correct[r], ids=r, reference=x, doubted="failures", margins=margins[r]) for r in rows]
    joined = join_directions(parts, rows, len(x))
    for name in ("weight", "label_margin", "doubted", *EFFECTS):
        found, expected = getattr(joined, name), getattr(whole, name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def one_class(seed, *, strength, n=400, dim=16):
    """A class that fails along axis 0; without ``strength`` at random."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    correct = strength * x[:, 0] + rng.normal(size=n) > -0.5
    return x, np.zeros(n, dtype=np.int64), correct


def test_flag_agreement__is_that_of_two_divisions_into_folds():
    """The truth: fits with many seeds, compared pair by pair."""
    x, labels, correct = one_class(0, strength=1.5)
    stated = [float(fit(x, labels, correct, permutations=99, seed=seed).flag_agreement[0]) for seed in range(4)]
    flags = [(fit(x, labels, correct, seed=seed).out_of_fold < 0).numpy() for seed in range(10, 18)]
    true = np.mean([positive_agreement(one, other) for i, one in enumerate(flags) for other in flags[:i]])
    assert np.mean(stated) == pytest.approx(true, abs=0.04)
    assert true > 0.8


@pytest.mark.parametrize("selection", ["scaled", "published"])
def test_flag_agreement__a_weak_pattern_flags_other_examples_each_time(selection):
    agreements = {}
    for strength in (0.7, 3.0):
        found = [
            fit(*one_class(seed, strength=strength, dim=64), permutations=99, selection=selection) for seed in range(4)
        ]
        assert all(float(one.p_value[0]) <= 0.05 for one in found)
        agreements[strength] = np.mean([float(one.flag_agreement[0]) for one in found])
    assert agreements[3.0] > agreements[0.7] + 0.05


def test_flag_agreement__only_where_there_may_be_a_pattern():
    x, labels, correct = one_class(0, strength=0.0)
    unlike = fit(x, labels, correct, permutations=99)
    assert float(unlike.p_value[0]) > 0.05
    assert bool(unlike.flag_agreement.isnan().all())
    untested = fit(*one_class(0, strength=3.0))
    assert bool(untested.flag_agreement.isnan().all())


def test_flag_agreement__sources_that_fill_one_division_only():
    """Ten failures of two sources fill two folds in every division, or in none: then there is no agreement to state."""
    x, labels, correct = one_class(1, strength=3.0)
    groups = np.arange(len(x))
    groups[~correct] = 1000 + np.arange((~correct).sum()) % 2
    directions = fit(x, labels, correct, groups=groups, permutations=99)
    assert directions.flag_agreement.shape == directions.classes.shape
