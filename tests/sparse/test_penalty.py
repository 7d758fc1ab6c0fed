"""The penalty's shift is the best one, and its residual vanishes exactly at a minimum."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.sparse.penalty import ElasticNet


@pytest.mark.parametrize("alpha", [1.0, 0.99, 0.3])
@pytest.mark.parametrize("grouped", [False, True])
def test_centred__no_other_shift_is_better(alpha, grouped):
    rng = np.random.default_rng(0)
    penalty = ElasticNet(0.7, alpha, grouped)
    for classes in (2, 3, 6, 7):
        weight = rng.normal(size=(classes, 50)) * (rng.random((classes, 50)) < 0.7) + (rng.random(50) < 0.2)
        shifted = penalty.centred(weight)
        best = penalty.value(shifted)
        assert best <= penalty.value(weight) + 1e-12
        np.testing.assert_allclose(np.ptp(shifted - weight, axis=0), 0, atol=1e-12)
        for j in range(50):
            for shift in [*(-shifted[:, j]), *rng.normal(size=5), 1e-3, -1e-3]:
                moved = shifted.copy()
                moved[:, j] += shift
                assert penalty.value(moved) >= best - 1e-9


def test_residual__is_zero_at_the_minimum_of_a_quadratic():
    penalty = ElasticNet(0.5, 0.8)
    target = np.array([[2.0, 0.3, -1.0]])
    weight = np.sign(target) * np.maximum(np.abs(target) - penalty.l1, 0) / (1 + penalty.l2)
    assert penalty.residual(weight, weight - target).max() < 1e-12
    moved = weight + np.array([[0.1, 0, 0]])
    assert penalty.residual(moved, moved - target)[0, 0] == pytest.approx(0.11)


def test_may_enter__keeps_what_exceeds_the_threshold():
    gradient = np.array([[0.9, 0.1], [-0.61, 0.0]])
    assert ElasticNet(0.8, 1.0).may_enter(gradient, 1.0).tolist() == [[True, False], [True, False]]
    assert ElasticNet(0.8, 1.0, grouped=True).may_enter(gradient, 1.0).tolist() == [[True, False]]
