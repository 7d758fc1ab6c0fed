"""The debugger finds the planted culprit, and its counts equal a brute-force removal of every feature."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lightning_failures.errors import DataError
from lightning_failures.sparse import (
    AccuracyCurve,
    SparseLayer,
    class_pairs,
    feature_effects,
    problematic_features,
    right_reasons,
)


def layer_of(weight, bias):
    weight = torch.tensor(weight, dtype=torch.float32)
    curve = AccuracyCurve(torch.ones(1).double(), torch.ones(1).double(), torch.ones(1).double())
    return SparseLayer(weight, torch.tensor(bias, dtype=torch.float32), torch.ones(weight.shape[1]), curve, 0, 10)


HAND = layer_of([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], [0.0, 0.5])


def test_problematic_features__by_hand():
    # logits: (5, 2.5), (1, 3.5), (4, 0.5), (0, 0.5)
    x = np.array([[1.0, 2.0, 2.0], [1.0, 3.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = problematic_features(HAND, x, [1, 1, 0, 0], ids=[10, 11, 12, 13])
    assert found.ids.tolist() == [10, 13]
    assert found.labels.tolist() == [1, 0]
    assert found.predictions.tolist() == [0, 1]
    assert found.feature.tolist() == [2, -1]  # zeroing feature 2 takes 4 from class 0; nothing helps the other
    assert found.gain.tolist() == [4.0, 0.0]
    assert found.fixed.tolist() == [True, False]
    assert found.random_used.tolist() == [0.5, 0.0]  # class 0 uses features 0 and 2
    assert found.random_any.tolist() == [pytest.approx(1 / 3), 0.0]
    assert found.correct_ids.tolist() == [11, 12]
    assert found.broken.tolist() == [True, True]
    assert (found.fixed_rate, found.broken_rate, found.random_used_rate) == (0.5, 1.0, 0.25)
    assert found.fixed_interval[0] < 0.5 < found.fixed_interval[1]


@pytest.fixture(scope="module")
def random_case():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 12)) * (rng.random((4, 12)) < 0.5)
    layer = layer_of(weight.tolist(), rng.normal(size=4).tolist())
    x = np.maximum(rng.normal(size=(300, 12)), 0).astype(np.float32)
    labels = (layer.decision(x).numpy() + rng.normal(size=(300, 4))).argmax(1)
    return layer, x, labels


def right(layer, x, labels):
    return layer.decision(x).argmax(1).numpy() == labels


def test_problematic_features__equal_brute_force(random_case):
    layer, x, labels = random_case
    found = problematic_features(layer, x, labels)
    before, predictions = right(layer, x, labels), layer.decision(x).argmax(1).numpy()
    logits = layer.decision(x).numpy()
    errors = np.flatnonzero(~before)
    assert found.ids.tolist() == errors.tolist()
    rows = np.arange(len(x))
    gains = np.zeros((12, len(x)))
    after = np.zeros((12, len(x)), dtype=bool)
    for j in range(12):
        without = x.copy()
        without[:, j] = 0
        other = layer.decision(without).numpy()
        gains[j] = (other[rows, labels] - other[rows, predictions]) - (logits[rows, labels] - logits[rows, predictions])
        after[j] = other.argmax(1) == labels
    best = gains[:, errors].argmax(0)
    some = gains[:, errors].max(0) > 1e-6
    assert found.feature[some].tolist() == best[some].tolist()
    np.testing.assert_allclose(found.gain, np.maximum(gains[:, errors].max(0), 0), atol=1e-5)
    assert found.fixed[some].tolist() == after[best, errors][some].tolist()
    assert found.fixed_rate > found.random_used_rate > 0
    # with fewer than 16 candidates the controls are exact
    used = (layer.weight != 0).numpy()
    expected = [after[used[predictions[i]], i].mean() for i in errors]
    np.testing.assert_allclose(found.random_used, expected)
    np.testing.assert_allclose(found.random_any, after[used.any(0)][:, errors].mean(0))


def test_feature_effects__equal_brute_force(random_case):
    layer, x, labels = random_case
    effects = feature_effects(layer, x, labels)
    before = right(layer, x, labels)
    for row in range(len(effects.feature)):
        weight = layer.weight.clone()
        j, k = effects.feature[row], effects.class_index[row]
        weight[slice(None) if k < 0 else k, j] = 0
        after = right(dataclasses.replace(layer, weight=weight), x, labels)
        assert effects.fixed[row] == (after & ~before).sum()
        assert effects.broken[row] == (before & ~after).sum()
        assert effects.effect[row] == pytest.approx(after.mean() - before.mean())
        assert effects.interval[row, 0] <= effects.effect[row] <= effects.interval[row, 1]
    assert len(effects.feature) == int((layer.weight != 0).sum()) + int((layer.weight != 0).any(0).sum())
    assert (np.diff(effects.effect) <= 1e-12).all()


def test_feature_effects__a_harmful_feature_is_worth_masking():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    x = np.stack([labels, 3 * (rng.random(400) < 0.3)], axis=1).astype(np.float32)
    effects = feature_effects(layer_of([[0.0, 0.0], [1.0, 1.0]], [0.5, 0.0]), x, labels)
    first = (effects.feature[0], effects.class_index[0])
    assert first == (1, -1)
    assert effects.worth_masking()[0]
    assert not effects.worth_masking()[effects.feature == 0].any()


def test_class_pairs__stand_beside_confusions(random_case):
    layer, x, labels = random_case
    pairs = class_pairs(layer, x, labels)
    predictions, weight = layer.decision(x).argmax(1).numpy(), layer.weight.numpy()
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for p, (a, b) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        assert pairs.shared[p] == ((weight[a] != 0) & (weight[b] != 0)).sum()
        assert pairs.correlation[p] == pytest.approx(np.corrcoef(weight[[a, b]])[0, 1], abs=1e-6)
        swapped = ((labels == a) & (predictions == b)) | ((labels == b) & (predictions == a))
        assert pairs.confusions[p] == swapped.sum()
    from scipy.stats import spearmanr

    assert pairs.weight_rank_correlation == pytest.approx(spearmanr(pairs.correlation, pairs.confusions)[0])
    assert pairs.shared_rank_correlation == pytest.approx(spearmanr(pairs.shared, pairs.confusions)[0])


def test_debug__without_errors_and_without_examples():
    found = problematic_features(HAND, np.array([[1.0, 0.0, 0.0]]), [0])
    assert len(found.ids) == 0
    assert np.isnan(found.fixed_rate)
    assert found.broken_rate == 1.0
    empty = problematic_features(HAND, np.zeros((0, 3)), [])
    assert len(empty.correct_ids) == 0


def test_debug__refuses_other_features_and_labels():
    with pytest.raises(DataError, match="3 dimensions"):
        problematic_features(HAND, np.zeros((2, 4)), [0, 1])
    with pytest.raises(DataError, match=r"0 \.\.\. 1"):
        feature_effects(HAND, np.zeros((2, 3)), [0, 2])


def test_right_reasons__counts_what_a_spurious_feature_alone_makes_right():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    sign = 2.0 * labels - 1
    cue, shortcut = sign * (rng.random(200) < 0.8), sign * np.where(np.arange(200) < 150, 1, -1)
    x = np.stack([cue, shortcut, rng.normal(size=200)], axis=1)
    weight, bias = np.array([[0.0, 0, 0], [1.0, 2.0, 0.0]]), np.array([0.0, 0.0])
    found = right_reasons(x, labels, [1], weight=weight, bias=bias)
    assert found.features == (1,)
    assert found.accuracy == 0.75
    logits = (x[:, [0]] * [[0.0, 1.0]]).argmax(1) == labels
    assert found.masked_accuracy == pytest.approx(logits.mean())
    assert found.gained - found.lost == pytest.approx(200 * (found.masked_accuracy - found.accuracy))
    assert found.lost == (~logits[:150]).sum()
    low, high = found.interval
    assert low < found.masked_accuracy - found.accuracy < high
    same = right_reasons(x, labels, [2], weight=weight, bias=bias)
    assert (same.gained, same.lost, same.masked_accuracy) == (0, 0, 0.75)


@pytest.mark.parametrize("masked", [[3], [-1]])
def test_right_reasons__of_a_feature_that_is_not_there(masked):
    with pytest.raises(DataError, match=r"0 \.\.\. 2"):
        right_reasons(np.ones((2, 3)), [0, 1], masked, weight=np.ones((2, 3)), bias=np.zeros(2))
