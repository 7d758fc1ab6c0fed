"""Splits: every example once, by class or by source, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.recipes.splits import at_most, split_by_source, stratified_split


def test_stratified__shares_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 20, 10])
    parts = stratified_split(labels, (0.2, 0.4, 0.4), 3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(80))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[10, 4, 2], [20, 8, 4], [20, 8, 4]]
    assert parts[0].tolist() == stratified_split(labels, (0.2, 0.4, 0.4), 3)[0].tolist()
    assert parts[0].tolist() != stratified_split(labels, (0.2, 0.4, 0.4), 4)[0].tolist()


def test_sources__whole_and_in_the_given_shares():
    sources = np.random.default_rng(0).integers(0, 400, 2000)
    parts = split_by_source(sources, (0.875, 0.125), 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(2000))
    assert not set(sources[parts[0]]) & set(sources[parts[1]])
    assert len(set(sources[parts[1]])) / len(set(sources)) == pytest.approx(0.125, abs=0.005)


def test_at_most__a_choice_in_order():
    rows = np.arange(100) * 2
    chosen = at_most(rows, 10, 1)
    assert len(chosen) == 10
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(rows)
