"""The figures of Barlow on planted features: validity of leaves, depth, and a published rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.recipes import barlow


def planted(n: int = 800, features: int = 8):
    """Two groups; in the first, images fail where two features are both high."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features)).astype(np.float32)
    groups = np.arange(n) % 2
    failed = (x[:, 2] > 0) & (x[:, 5] > 0) & (groups == 0)
    return (lambda rows: torch.from_numpy(x[rows])), groups, failed


def test_scores__of_the_groups_that_hold_failures_and_successes():
    features, groups, failed = planted()
    one, three = (barlow._tree_scores(features, groups, failed, depth, 0) for depth in (1, 3))
    assert one["valid leaf fraction"] == three["valid leaf fraction"] == 1.0
    assert 0.1 < one["ALER - BER"] < three["ALER - BER"]
    assert three["held-out ALER - BER"] > one["held-out ALER - BER"] > 0.1
    assert barlow._tree_scores(features, groups, np.zeros(len(groups), bool), 1, 0) == {}


def test_rule__error_rate_of_the_class_and_of_the_images_below_the_threshold():
    x = torch.zeros(10, barlow.RULE_FEATURE + 1)
    x[6:, barlow.RULE_FEATURE] = 0.4
    failed = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], bool)
    found = barlow._rule_figures(lambda rows: x[torch.from_numpy(rows)], np.arange(10), failed, "label")
    assert found == {
        "purse, label group: error rate": pytest.approx(0.4),
        "purse, label group: error rate by the published rule": pytest.approx(0.5),
    }
    claimed = {claim.key for claim in barlow.IMAGENET_BARLOW.claims}
    assert "purse, label group: error rate by the published rule" in claimed


def test_sparse__accuracy_and_features_of_both_layers():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(300, 12)).astype(np.float32))
    labels = x[:, :3].argmax(1).numpy()
    found = barlow._sparse_figures("robust", lambda rows: x[torch.from_numpy(rows)], labels, 0)
    assert found["robust: accuracy of the sparse layer"] > 0.8
    assert found["robust: features per class"] <= 4


def test_rule__is_found_again_by_a_tree():
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.random((200, barlow.RULE_FEATURE + 1), dtype=np.float32))
    failed = (x[:, barlow.RULE_FEATURE] < 0.36).numpy()
    figures, texts = barlow._rule_again(lambda rows: x[torch.from_numpy(rows)], np.arange(200), failed, "label", 0)
    assert figures["purse, label group: the tree splits on the published feature"] == 1
    assert figures["purse, label group: threshold of the tree"] == pytest.approx(0.36, abs=0.02)
    assert texts["purse, label group: rule of the tree"].startswith("feature 1456 <= 0.3")
    assert barlow._rule_again(None, np.arange(0), failed, "label", 0) == ({}, {})
