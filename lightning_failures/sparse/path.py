"""The path of sparse layers: multinomial logistic regression with an elastic net penalty, for many values of lambda.

Source: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021, section 2
and appendix A. Departures: the solver is exact instead of a stochastic one that stops early (there a variance-reduced
gradient method), so no step size, number of epochs or tolerance is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_vector
from lightning_failures.core.budget import Deadline
from lightning_failures.core.precision import full_precision
from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.sparse.blocks import StandardizedBlocks
from lightning_failures.sparse.softmax import Head, SoftmaxProblem
from lightning_failures.sparse.solver import PathSolver

_ABSENT = 30.0
"""How far the bias of a class without examples lies below the smallest other one."""


@dataclass(frozen=True, eq=False)
class SparsePath:
    """Sparse layers ``features @ weight.T + bias``, one for each lambda.

    Nearly all weights are 0, and a dense path over 1,000 classes and 2,048 features fills 800 MB. So only weights that
    are not 0 are stored; :meth:`layer` and :attr:`weight` expand them.

    Attributes:
        lambdas: (L,) float64, descending.
        positions: (P,) int64, where the weights that are not 0 lie in the flattened (L, K, D) array, ascending.
        values: (P,) float32, these weights, for raw features.
        bias: (L, K) float32, for raw features. A class without examples lies 30 below the smallest other one.
        mean: (D,) float32, the mean of each feature in the fitting set.
        std: (D,) float32, its standard deviation; 1 with ``standardize=False``, 0 for a constant feature.
        objective: (L,) float64, mean cross-entropy + lambda * penalty, on standardized features.
        residual: (L,) float64, distance from the optimality (KKT) conditions in units of lambda: the largest absolute
            component of the smallest subgradient.
    """

    lambdas: Tensor
    positions: Tensor
    values: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    objective: Tensor
    residual: Tensor

    @property
    def weight(self) -> Tensor:
        """(L, K, D) float32, all weights for raw features."""
        shape = (*self.bias.shape, len(self.mean))
        return torch.zeros(shape).flatten().index_put_((self.positions,), self.values).reshape(shape)

    @property
    def features_per_class(self) -> Tensor:
        """(L,) float64, the mean number of features with a weight."""
        cells = self.bias.shape[1] * len(self.mean)
        counts = torch.bincount(self.positions // cells, minlength=len(self.lambdas))
        return counts.double() / self.bias.shape[1]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the weights (K, D) and biases (K,) at ``lambdas[index]``."""
        index = range(len(self.lambdas))[index]
        classes, dim = self.bias.shape[1], len(self.mean)
        start, stop = np.searchsorted(self.positions.numpy(), [index * classes * dim, (index + 1) * classes * dim])
        weight = torch.zeros(classes * dim)
        weight[self.positions[start:stop] - index * classes * dim] = self.values[start:stop]
        return weight.reshape(classes, dim), self.bias[index]


def fit_sparse_path(
    features: Any,
    labels: Any,
    *,
    alpha: float = 0.99,
    lambdas: Sequence[float] | None = None,
    n_lambdas: int = 100,
    lambda_ratio: float = 1e-3,
    grouped: bool = False,
    standardize: bool = True,
    sample_weight: Any = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> SparsePath:
    r"""Fit a path of sparse layers.

    Minimises for each lambda, over the weights W of standardized features z and the biases b::

        sum_i m_i cross_entropy(W z_i + b, y_i) + lambda * (alpha |W|_1 + (1 - alpha) / 2 |W|^2),    sum_i m_i = 1.

    The objective is within 1e-6 (relative) of the minimum, and the optimality conditions hold to 0.005 lambda. Without
    ``lambdas``, they fall geometrically from the smallest one at which all weights are 0, the largest absolute value of
    Z'(Y - mean of Y) / n / alpha.

    Features that fit into 1 GiB as float32 are standardized once and kept; others are read again, block by block, in
    every pass: some ten passes for each lambda.

    Args:
        features: (N, D) floats of any precision: a tensor, an array, a memory map, or an iterable of blocks of rows
            that starts again each time it is iterated.
        labels: (N,) int, 0 ... K - 1 with K - 1 the largest.
        alpha: Share of the sparse part of the penalty, in (0, 1].
        lambdas: Values > 0, descending. None: ``n_lambdas`` values.
        n_lambdas: L.
        lambda_ratio: The smallest lambda over the largest, in (0, 1).
        grouped: Whether a feature enters for all classes or none: ``|W|_1`` is then the sum over features of the length
            of their weights of all classes.
        standardize: Whether features are divided by their standard deviation. Their mean is always subtracted, which
            changes only the biases.
        sample_weight: (N,) >= 0, for the loss, the mean and the standard deviation. An integer weight equals as many
            copies of the example. None: all equal.
        seed: Seed of the sample of examples that the solver takes the curvature from. The solution depends on it
            within the tolerance.
        device: Device of the products; the coordinate descent on small matrices runs on the CPU.

    Raises:
        ConfigurationError: An option out of range.
        DataError: Features that are not finite, labels that do not fit, fewer than two classes, or no feature that
            differs between classes.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(300, 8))
    >>> path = fit_sparse_path(x, (x[:, 3] > 0).astype(int), n_lambdas=5, lambda_ratio=0.1)
    >>> path.weight.shape, path.layer(2)[0].nonzero().tolist()
    (torch.Size([5, 2, 8]), [[0, 3], [1, 3]])
    """
    options = PathOptions(alpha, lambdas, n_lambdas, lambda_ratio, grouped, standardize, None, seed, device)
    return solve_path(features, labels, sample_weight, options)


@dataclass(frozen=True)
class PathOptions:
    """How a path is fitted; see :func:`fit_sparse_path`.

    Attributes:
        ridge: Penalty of a refit on the support of each layer; None for the layers of the path themselves.
        deadline: Time after which no further layer is fitted, and the path ends; None: no limit.
        balanced: Whether all classes have the same mass; weights then count within their class.
    """

    alpha: float = 0.99
    lambdas: Sequence[float] | None = None
    n_lambdas: int = 100
    lambda_ratio: float = 1e-3
    grouped: bool = False
    standardize: bool = True
    ridge: float | None = None
    seed: int = 0
    device: str | torch.device = "cpu"
    deadline: Deadline | None = None
    balanced: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ConfigurationError(f"alpha must lie in (0, 1]; got {self.alpha}.")
        if self.ridge is not None and not self.ridge > 0:
            raise ConfigurationError(f"ridge must be above 0; got {self.ridge}.")
        if self.n_lambdas < 1 or not 0 < self.lambda_ratio < 1:
            given = f"{self.n_lambdas} and {self.lambda_ratio}"
            raise ConfigurationError(f"n_lambdas must be at least 1 and lambda_ratio lie in (0, 1); got {given}.")
        values = np.asarray([1.0] if self.lambdas is None else self.lambdas, dtype=np.float64)
        if values.ndim != 1 or not len(values) or not (values > 0).all() or not (np.diff(values) < 0).all():
            raise ConfigurationError("lambdas must be > 0 and descend: each fit starts from the one before.")


def solve_path(features: Any, labels: Any, sample_weight: Any, options: PathOptions) -> SparsePath:
    """Fit a path; with ``options.ridge``, weights and biases are those of the refits on the supports."""
    y = as_vector(labels, "labels", len(labels)).astype(np.int64)
    classes, targets = np.unique(y, return_inverse=True)
    if len(classes) < 2 or classes[0] < 0:
        raise DataError(f"labels must be 0 ... K - 1, of at least two classes; got {classes[:5].tolist()}.")
    mass = _masses(sample_weight, len(y))
    priors = np.bincount(targets, weights=mass).astype(np.float64)
    if priors.min() <= 0:
        raise DataError("every class must have an example with a sample_weight above 0; leave the others out.")
    if options.balanced:
        mass = mass / (len(classes) * priors[targets])
        priors = np.full(len(classes), 1 / len(classes))

    with full_precision(options.device):
        return _solve(features, classes, targets, mass, priors, options)


def _solve(
    features: Any, classes: IntArray, targets: IntArray, mass: FloatArray, priors: FloatArray, options: PathOptions
) -> SparsePath:
    """Fit a path to checked labels.

    Args:
        features: (N, D).
        classes: (K,) the labels that occur, ascending.
        targets: (N,) int64, their positions in ``classes``.
        mass: (N,) float64, sum 1.
        priors: (K,) float64, the mass of each class.
        options: How the path is fitted.
    """
    data = StandardizedBlocks(features, mass, standardize=options.standardize, device=options.device)
    problem = SoftmaxProblem(data, targets, mass, len(classes), seed=options.seed, device=options.device)
    solver = PathSolver(problem, priors, options.alpha, options.grouped)
    grid = _grid(solver.lambda_max, options)
    n_classes = int(classes[-1]) + 1
    positions, values, biases, solutions = [], [], [], []
    for row, strength in enumerate(grid.tolist()):
        if row and options.deadline is not None and options.deadline.passed:
            break
        solution = solver.solve(strength)
        head = solution.head if options.ridge is None else solver.refit(options.ridge)
        at, weight, bias = _for_raw_features(head, data)
        positions.append((row * n_classes + classes[at[0]]) * data.dim + at[1])
        values.append(weight)
        biases.append(np.full(n_classes, bias.min() - _ABSENT))
        biases[-1][classes] = bias
        solutions.append(solution)
    return SparsePath(
        lambdas=torch.from_numpy(grid[: len(solutions)]),
        positions=torch.from_numpy(np.concatenate(positions)),
        values=torch.from_numpy(np.concatenate(values)).float(),
        bias=torch.from_numpy(np.stack(biases)).float(),
        mean=torch.from_numpy(data.mean).float(),
        std=torch.from_numpy(data.std).float(),
        objective=torch.tensor([one.objective for one in solutions], dtype=torch.float64),
        residual=torch.tensor([one.residual for one in solutions], dtype=torch.float64),
    )


def _for_raw_features(head: Head, data: StandardizedBlocks) -> tuple[tuple[IntArray, IntArray], FloatArray, FloatArray]:
    """Return class and column of each weight that is not 0, in the order of the input; the weights; and the biases."""
    columns = data.order[: head.weight.shape[1]]
    rank = np.argsort(columns)
    weight, columns = head.weight[:, rank], columns[rank]
    scale = np.divide(1.0, data.std[columns], out=np.zeros(len(columns)), where=data.std[columns] > 0)
    raw = weight * scale
    k, j = np.nonzero(raw)
    return (k, columns[j]), raw[k, j], head.bias - raw @ data.mean[columns]


def _masses(sample_weight: Any, n: int) -> FloatArray:
    if sample_weight is None:
        return np.full(n, 1.0 / n)
    mass = as_array(sample_weight).astype(np.float64)
    if mass.shape != (n,) or not np.isfinite(mass).all() or mass.min() < 0 or mass.sum() <= 0:
        raise DataError(f"sample_weight must have shape ({n},), be finite, >= 0, and not all 0.")
    return np.asarray(mass / mass.sum())


def _grid(lambda_max: float, options: PathOptions) -> FloatArray:
    if options.lambdas is not None:
        return np.array(options.lambdas, dtype=np.float64)
    if lambda_max <= 0:
        raise DataError("no feature differs between classes: all are constant, or have equal means in all classes.")
    return np.asarray(lambda_max * np.geomspace(1, options.lambda_ratio, options.n_lambdas))
