"""Directions in the network's own space, and a note where no Inception was given."""

from __future__ import annotations

from lightning_failures.recipes.parts.spaces import other_spaces, own_space


def test_own_space__figures_beside_those_of_clip(trained):
    found = other_spaces(trained)
    assert {"hard in all, own space", "hard among flagged, own space", "CV score, own space", "CV score"} <= set(
        found.figures
    )
    assert 0.5 < found.figures["CV score, own space"] <= 1
    assert found.figures["hard among flagged, own space"] > found.figures["hard in all, own space"]
    assert not any("confidence" in key for key in found.figures)
    assert "--inception" in found.notes[0]
    assert own_space(trained).dim == 24
