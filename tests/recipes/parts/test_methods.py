"""Rankings of other methods: a share for each, of a hard group that all can find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_failures.recipes.parts.methods import other_methods


def test_methods__share_of_the_hard_group_for_each(trained):
    found = other_methods(trained)
    chance = trained.setting.hard_in_test.mean()
    for name in ("Domino", "Learning from Failure", "an early network"):
        assert 0 <= found.figures[f"hard in top 100 by {name}"] <= 1
    assert found.figures["hard in top 10 by an early network"] > chance
    assert found.figures["hard in top 10 by Domino"] > chance
    early, last = trained.early_test.probabilities, trained.test.probabilities
    assert early.shape == last.shape
    assert not np.allclose(early, last)


def test_methods__without_a_hard_group_there_is_nothing_to_compare(trained):
    plain = replace(trained, setting=replace(trained.setting, hard_in_test=None))
    assert other_methods(plain).figures == {}
