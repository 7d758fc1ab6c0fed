"""Counterfactuals of single features: by hand on a layer of known weights, and against a loop over examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.errors import DataError
from lightning_failures.sparse import AccuracyCurve, SparseLayer, feature_counterfactual


def layer_of(weight) -> SparseLayer:
    w = torch.as_tensor(weight, dtype=torch.float32)
    curve = AccuracyCurve(*(torch.ones(1, dtype=torch.float64) for _ in range(3)))
    return SparseLayer(w, torch.zeros(len(w)), torch.ones(w.shape[1]), curve, 0, 10)


def test_flips__agree_with_a_loop():
    rng = np.random.default_rng(0)
    layer = layer_of(rng.normal(size=(3, 6)) * (rng.random((3, 6)) < 0.7))
    x = np.abs(rng.normal(size=(200, 6)))
    y = layer.decision(x).argmax(1).numpy()
    y[::7] = (y[::7] + 1) % 3  # errors, which are left out
    found = feature_counterfactual(layer, x, y, 2, (0, 1), ids=np.arange(200) + 1000)
    high = np.percentile(x[:, 2], 99)
    logits = layer.decision(x).numpy()
    own = [i for i in range(200) if y[i] == 0 == logits[i].argmax()]
    assert found.raised_to == pytest.approx(high)
    assert sorted(found.ids.tolist()) == [i + 1000 for i in own]
    assert (np.diff(found.margins) >= 0).all()
    for i, margin, flips in zip(found.ids - 1000, found.margins, found.raised, strict=True):
        assert margin == pytest.approx(logits[i, 0] - logits[i, 1], abs=1e-5)
        changed = x[i].copy()
        changed[2] = max(changed[2], high)
        assert flips == (layer.decision(changed[None])[0].argmax() == 1)
    for i, flips in zip(found.rival_ids - 1000, found.zeroed, strict=True):
        changed = x[i].copy()
        changed[2] = 0
        assert flips == (layer.decision(changed[None])[0].argmax() == 0)
    assert 0 <= found.raised_random <= 1


def test_planted_feature__flips_more_than_a_random_one():
    layer = layer_of([[1, 0, 0, 0], [0, 3, 0.1, 0.1]])
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(400, 4)))
    x[:, 0] += 2
    y = layer.decision(x).argmax(1).numpy()
    found = feature_counterfactual(layer, x, y, 1, (0, 1))
    assert found.raised.mean() > 0.9
    assert found.raised_random < 0.1
    assert found.zeroed.mean() > 0.9 > 0.3 > found.zeroed_random


def test_no_correct_example__is_empty_and_undefined():
    layer = layer_of([[1, 0], [0, 1]])
    found = feature_counterfactual(layer, np.eye(2), [1, 0], 1, (0, 1))
    assert (len(found.ids), len(found.raised), len(found.zeroed)) == (0, 0, 0)
    assert np.isnan(found.raised_random)
    assert np.isnan(found.zeroed_random)


@pytest.mark.parametrize(("feature", "pair"), [(2, (0, 1)), (-1, (0, 1)), (0, (0, 0)), (0, (0, 2))])
def test_what_the_layer_lacks__is_an_error(feature, pair):
    with pytest.raises(DataError, match="two of 2 classes"):
        feature_counterfactual(layer_of([[1, 0], [0, 1]]), np.eye(2), [0, 1], feature, pair)
