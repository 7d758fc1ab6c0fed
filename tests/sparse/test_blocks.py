"""Blocks hold the standardized features in the order of entry, from memory and from repeated reading alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.sparse import blocks as blocks_module
from lightning_failures.sparse.blocks import StandardizedBlocks


@pytest.mark.parametrize("in_memory", [0, 1 << 28])
def test_promote__moves_features_to_the_front_of_every_block(in_memory, monkeypatch):
    monkeypatch.setattr(blocks_module, "_CELLS_IN_MEMORY", in_memory)
    x = np.random.default_rng(0).normal(size=(20, 7))
    data = StandardizedBlocks([x[:8], x[8:]], np.full(20, 1 / 20))
    z = (x - data.mean) / data.std
    moved = data.promote(np.array([2, 3, 6]), 0)
    assert data.order[:3].tolist() == [2, 3, 6]
    again = data.promote(np.array([4, 6]), 3)
    assert sorted(data.order.tolist()) == list(range(7))
    assert data.order.tolist() == moved[again].tolist()
    for count in (0, 4, 7):
        rows, parts = zip(*data.blocks(count), strict=True)
        assert rows == (slice(0, 8), slice(8, 20))
        np.testing.assert_allclose(torch.cat(parts, 1).numpy(), z[:, data.order[:count]].T, atol=1e-12)


def test_moments__are_weighted_and_precise_far_from_zero():
    x = np.random.default_rng(0).normal(size=(500, 2)) * [1, 1e-3] + [1e6, 1e3]
    mass = np.random.default_rng(1).random(500)
    mass /= mass.sum()
    data = StandardizedBlocks([x[:100], x[100:]], mass)
    np.testing.assert_allclose(data.mean, mass @ x, rtol=1e-7)
    np.testing.assert_allclose(data.std, np.sqrt(mass @ (x - mass @ x) ** 2), rtol=1e-6)


def test_blocks__are_single_precision_unless_few(monkeypatch):
    x = np.random.default_rng(0).normal(size=(20, 3))
    assert StandardizedBlocks(x, np.full(20, 1 / 20)).dtype == torch.float64
    monkeypatch.setattr(blocks_module, "_CELLS_IN_DOUBLE", 0)
    assert StandardizedBlocks(x, np.full(20, 1 / 20)).dtype == torch.float32
