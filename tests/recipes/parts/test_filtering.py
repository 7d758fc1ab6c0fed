"""Picks of a pool: as many a class for each choice, and those by direction hold more of the hard group."""

from __future__ import annotations

from dataclasses import replace

from lightning_failures.recipes.parts.filtering import filtering


def test_filtering__arms_with_the_same_number_of_picks(trained):
    found = filtering(trained)
    for arm in ("before filtering", "with picks by direction", "with picks by confidence", "with picks by chance"):
        assert 0 <= found.figures[f"accuracy {arm}"] <= 1
        assert 0 <= found.figures[f"accuracy on the hard group {arm}"] <= 1
    assert found.figures["hard among picks by direction"] > found.figures["hard in the pool"]
    assert "10 images a class" in found.notes[0]


def test_filtering__of_a_variant_without_a_pool(trained):
    found = filtering(replace(trained, setting=replace(trained.setting, pool=None)))
    assert not found.figures
    assert "no pool" in found.notes[0]
