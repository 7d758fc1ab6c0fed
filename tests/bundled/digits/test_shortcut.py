from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.bundled.digits import (
    TINTS,
)
from lightning_failures.bundled.digits.shortcut import NOTHING, draw_tints, plant_shortcut

TINT_NAMES = list(TINTS)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_plant_shortcut__has_the_planted_structure(seed):
    shortcut = plant_shortcut(np.random.default_rng(seed))
    usual, unusual = shortcut.usual, shortcut.unusual
    planted = usual != NOTHING
    assert torch.equal(planted, unusual != NOTHING)
    assert int(planted.sum()) == 8
    assert sorted(torch.bincount(usual[planted]).tolist(), reverse=True)[:5] == [2, 2, 2, 1, 1]
    assert len(set(usual[planted].tolist())) == 5
    assert (usual != unusual)[planted].all()
    assert set(unusual[planted].tolist()) <= set(usual[planted].tolist()), "another digit's usual tint"
    assert torch.bincount(unusual[planted]).max() <= 4


def test_plant_shortcut__every_seed_draws_other_tints():
    drawn = [plant_shortcut(np.random.default_rng([seed, 3])) for seed in range(200)]
    unplanted = torch.stack([s.usual == NOTHING for s in drawn]).float().mean(dim=0)
    assert torch.allclose(unplanted, torch.full((10,), 0.2), atol=0.12)
    assert len({tuple(s.usual.tolist()) for s in drawn}) > 190
    for digit in range(10):
        assert {int(s.usual[digit]) for s in drawn} == {NOTHING, *range(10)}


def test_shortcut__truth_names_the_tints():
    shortcut = plant_shortcut(np.random.default_rng(0))
    for digit, truth in enumerate(shortcut.truth()):
        if truth is None:
            assert shortcut.usual[digit] == NOTHING
        else:
            assert TINT_NAMES.index(truth["usual_tint"]) == shortcut.usual[digit]
            assert TINT_NAMES.index(truth["unusual_tint"]) == shortcut.unusual[digit]


@pytest.mark.parametrize("strength", [0.5, 0.9, 0.99])
def test_draw_tints__shows_the_usual_tint_as_often_as_asked(strength):
    shortcut = plant_shortcut(np.random.default_rng(1))
    labels = torch.arange(10).repeat(4000)
    tints = draw_tints(labels, shortcut, strength, np.random.default_rng(2))
    planted = shortcut.usual[labels] != NOTHING
    is_usual = tints == shortcut.usual[labels]
    assert is_usual[planted].float().mean() == pytest.approx(strength, abs=0.01)
    assert ((tints == shortcut.unusual[labels]) | is_usual)[planted].all(), "usual or unusual, nothing else"
    share = torch.bincount(tints[~planted], minlength=10) / (~planted).sum()
    assert torch.allclose(share, torch.full((10,), 0.1), atol=0.02)
