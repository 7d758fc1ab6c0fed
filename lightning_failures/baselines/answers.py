"""Hardness of examples from the answers of models alone.

The simplest baseline is the confidence in the label, which :class:`~lightning_failures.Grades` holds: the hardness is
1 - confidence, and a loss orders the examples in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.core.arrays import as_array, as_rows, as_vector
from lightning_failures.core.types import FloatArray
from lightning_failures.errors import DataError


def margins(probabilities: Any, labels: Any) -> FloatArray:
    """Return the probability of the label minus the largest other one, (N,) float64 in [-1, 1].

    The hardness of an example is its negative margin.

    Args:
        probabilities: (N, K) in [0, 1].
        labels: (N,) int, 0 ... K - 1.

    >>> margins(np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]), np.array([0, 0])).round(2).tolist()
    [0.5, -0.3]
    """
    p = as_rows(probabilities, "probabilities").astype(np.float64)
    y = as_vector(labels, "labels", len(p)).astype(np.int64)
    if p.shape[1] < 2:
        raise DataError("probabilities must have a column for each of at least two classes.")
    if len(y) and not 0 <= y.min() <= y.max() < p.shape[1]:
        raise DataError(f"labels must be 0 ... {p.shape[1] - 1}, one column of probabilities each.")
    rows = np.arange(len(p))
    own = p[rows, y]
    others = p.copy()
    others[rows, y] = -np.inf
    return np.asarray(own - others.max(axis=1))


def disagreement(probabilities: Any) -> FloatArray:
    """Return how far the answers of several models differ, (N,) float64, 0 where all give the same probabilities.

    It is the mean relative entropy (nats) of a model's answer to the mean answer, the part of the uncertainty of an
    ensemble that its members do not share.

    Args:
        probabilities: (M, N, K) in [0, 1], answers of M models, such as checkpoints of one training.

    >>> same, other = [[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]]
    >>> disagreement(np.array([same, other])).round(3).tolist()
    [0.0, 0.368]
    """
    p = as_array(probabilities).astype(np.float64)
    if p.ndim != 3 or not len(p):
        raise DataError(f"probabilities must have the shape (M, N, K), of at least one model; got {p.shape}.")
    mean = p.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / mean), 0.0)
    return np.asarray(np.maximum(terms.sum(axis=2).mean(axis=0), 0.0))
