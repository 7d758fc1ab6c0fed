"""The solver descends at every step, also in single precision, and its model of groups and coordinates is minimised."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.sparse import blocks
from lightning_failures.sparse.blocks import StandardizedBlocks
from lightning_failures.sparse.softmax import SoftmaxProblem
from lightning_failures.sparse.solver import PathSolver
from lightning_failures.stats.kernels.elastic_net import descend, descend_groups
from tests.sparse.reference import planted


def solver_of(x, y, *, grouped=False):
    mass = np.full(len(y), 1 / len(y))
    problem = SoftmaxProblem(StandardizedBlocks(x, mass), y, mass, int(y.max()) + 1)
    return PathSolver(problem, np.bincount(y) / len(y), 0.99, grouped)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("double_cells", [0, 1 << 30])
def test_solver__objective_never_increases(grouped, double_cells, monkeypatch):
    monkeypatch.setattr(blocks, "_CELLS_IN_DOUBLE", double_cells)
    x, y, _ = planted(300, 20, 5)
    solver = solver_of(x, y, grouped=grouped)
    for share in (0.5, 0.2, 0.05, 0.02):
        solution = solver.solve(share * solver.lambda_max)
        assert (np.diff(solution.objectives) <= 1e-8).all()
        assert solution.objective == pytest.approx(solution.objectives[-1], rel=1e-6)
        assert solution.residual <= 0.005


def test_solver__refit_keeps_the_support_and_the_path():
    x, y, _ = planted(400, 20, 4)
    solver, other = solver_of(x, y), solver_of(x, y)
    first = solver.solve(0.2 * solver.lambda_max)
    refitted = solver.refit(1e-3)
    assert np.array_equal(refitted.weight != 0, first.head.weight != 0)
    assert np.abs(refitted.weight).sum() > np.abs(first.head.weight).sum()  # no longer shrunken
    other.solve(0.2 * other.lambda_max)
    assert np.array_equal(
        solver.solve(0.1 * solver.lambda_max).head.weight, other.solve(0.1 * other.lambda_max).head.weight
    )


def model(rng, size):
    root = rng.normal(size=(2 * size, size))
    return (root.T @ root / size).astype(np.float32), rng.normal(size=size).astype(np.float32)


def test_descend__reaches_the_minimum_of_the_model():
    rng = np.random.default_rng(0)
    gram, gradient = model(rng, 8)
    start = rng.normal(size=8).astype(np.float32)
    weight = start.copy()
    l1, l2, scale = 0.5, 0.1, 1.5
    descend(gram, gradient.copy(), weight, *(np.float32(one) for one in (scale, l1, l2, 1e-6)), 1000)
    slope = gradient + scale * gram @ (weight - start) + l2 * weight
    assert (weight == 0).any()
    assert np.abs(slope + l1 * np.sign(weight))[weight != 0].max() < 1e-4
    assert np.abs(slope)[weight == 0].max() < l1 + 1e-4


def test_descend_groups__reaches_the_minimum_of_the_model():
    rng = np.random.default_rng(1)
    grams, gradient = (np.stack(one) for one in zip(*(model(rng, 6) for _ in range(3)), strict=True))
    start = rng.normal(size=(3, 6)).astype(np.float32)
    weight = start.copy()
    l1, l2, scale = 5.0, 0.1, 1.5
    descend_groups(grams, gradient.copy(), weight, *(np.float32(one) for one in (scale, l1, l2, 1e-6)), 1000)
    slope = gradient + scale * np.einsum("kij,kj->ki", grams, weight - start) + l2 * weight
    length = np.sqrt((weight**2).sum(axis=0))
    used = length > 0
    assert used.any()
    assert not used.all()
    assert np.abs(slope + l1 * weight / np.where(used, length, 1))[:, used].max() < 1e-4
    assert np.sqrt((slope**2).sum(axis=0))[~used].max() < l1 + 1e-4
