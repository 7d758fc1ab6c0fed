"""Loss, gradient and Gram matrices equal their definitions in double precision."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax

from lightning_failures.sparse import blocks as blocks_module
from lightning_failures.sparse import softmax as softmax_module
from lightning_failures.sparse.blocks import StandardizedBlocks
from lightning_failures.sparse.softmax import Head, SoftmaxProblem
from tests.sparse.reference import objective, planted


@pytest.fixture(params=[1 << 22, 40])
def problem(request, monkeypatch):
    """A problem in one block, and in several."""
    monkeypatch.setattr(blocks_module, "_CELLS_AT_ONCE", request.param)
    x, y, _ = planted(60, 5, 3)
    mass = np.random.default_rng(0).random(60)
    mass /= mass.sum()
    data = StandardizedBlocks(x, mass)
    return SoftmaxProblem(data, y, mass, 3), (x - data.mean) / data.std, y, mass


def test_evaluate__equals_the_definition(problem):
    ours, z, y, mass = problem
    rng = np.random.default_rng(1)
    head = Head(rng.normal(size=(3, 2)), rng.normal(size=3))
    at = ours.evaluate(head, 5)
    p = softmax(z[:, :2] @ head.weight.T + head.bias, axis=1)
    error = mass[:, None] * (p - np.eye(3)[y])
    assert at.loss == pytest.approx(objective(z[:, :2], y, head.weight, head.bias, 0.0, 1.0, mass=mass))
    np.testing.assert_allclose(at.weight, error.T @ z, atol=1e-12)
    np.testing.assert_allclose(at.bias, error.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(at.curvature, mass @ (p * (1 - p)), atol=1e-12)


def test_grams__equal_the_definition_if_all_examples_take_part(problem, monkeypatch):
    monkeypatch.setattr(softmax_module, "_ROWS_PER_CLASS", 10**9)
    ours, z, _, mass = problem
    head = Head(np.random.default_rng(1).normal(size=(3, 5)), np.zeros(3))
    sets = {0: np.array([0, 3]), 2: np.array([1, 2, 4])}
    p = softmax(z @ head.weight.T, axis=1)
    for k, gram in ours.grams(head, sets, ours.evaluate(head, 5).curvature).items():
        v, z_a = mass * p[:, k] * (1 - p[:, k]), z[:, sets[k]]
        centred = z_a - v @ z_a / v.sum()
        np.testing.assert_allclose(gram.matrix, (centred.T * v) @ centred, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(gram.cross, v @ z_a, atol=1e-10)
        assert gram.total == pytest.approx(v.sum())


def test_grams__a_sample_has_the_right_mean(monkeypatch):
    monkeypatch.setattr(softmax_module, "_ROWS_PER_CLASS", 300)
    monkeypatch.setattr(softmax_module, "_ROWS_PER_FEATURE", 1)
    x, y, _ = planted(3000, 3, 3)
    mass = np.full(3000, 1 / 3000)
    head, sets = Head(np.random.default_rng(1).normal(size=(3, 3)), np.zeros(3)), {1: np.arange(3)}
    draws = [SoftmaxProblem(StandardizedBlocks(x, mass), y, mass, 3, seed=seed) for seed in range(30)]
    grams = [one.grams(head, sets, one.evaluate(head, 3).curvature)[1].matrix for one in draws]
    z = (x - draws[0].data.mean) / draws[0].data.std
    p = softmax(z @ head.weight.T, axis=1)[:, 1]
    v = mass * p * (1 - p)
    centred = z - v @ z / v.sum()
    np.testing.assert_allclose(np.mean(grams, axis=0), (centred.T * v) @ centred, rtol=0.1, atol=0.1 * v.sum())
    assert np.std(grams, axis=0).max() > 0


def test_grams__are_summed_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(softmax_module, "_ROWS_PER_FEATURE", 1)
    x, y, _ = planted(1200, 300, 10)
    mass = np.full(1200, 1 / 1200)
    problem = SoftmaxProblem(StandardizedBlocks(x, mass), y, mass, 10)
    head, sets = Head(np.zeros((10, 300)), np.zeros(10)), {k: np.arange(300) for k in range(10)}
    curvature = problem.evaluate(head, 300).curvature

    def peak() -> tuple[dict, float]:
        tracemalloc.start()
        try:
            grams = problem.grams(head, sets, curvature)
            return grams, tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    all_at_once, unlimited = peak()
    monkeypatch.setattr(softmax_module, "_GRAM_CELLS_AT_ONCE", 2 * 300**2)
    monkeypatch.setattr(softmax_module, "_GRAM_CELLS_IN_MEMORY", 0)
    in_turn, limited = peak()
    assert all(np.array_equal(in_turn[k].matrix, all_at_once[k].matrix) for k in sets)
    assert unlimited > 10 * 300**2 * 12 / 2**20  # of all classes in float64 and float32
    assert limited < 4 * 300**2 * 8 / 2**20
