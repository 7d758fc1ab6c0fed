"""The screening test: is correctness independent of the position of an example in the embedding?

T = (y w)' K (y w) is the squared distance of the class-weighted means of successes and failures. All permuted
labellings (of whole groups) take one matrix product, with the Gram matrix or, where there are more examples than
dimensions, with the features. With u = 1 for a failure, T is u'Ku on centred features, up to a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, is_cpu, on_device
from lightning_failures.core.precision import full_precision
from lightning_failures.core.types import BoolArray
from lightning_failures.stats.folds import permuted_outcomes
from lightning_failures.stats.sequential import SequentialTest, enough_of

PROMISING = 0.01
"""Classes with at most this p-value are permuted ``at_least`` times."""

_ROUNDING = 1e-5  # a permutation that equals the observed labels must count as extreme in single precision


def permutation_p_value(
    features: NDArray[Any],
    gram: NDArray[Any] | None,
    correct: BoolArray,
    sources: NDArray[np.generic],
    *,
    permutations: int,
    at_least: int = 0,
    enough: int | None = None,
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
) -> float:
    """Return the p-value of the distance between the balanced class means, (1 + number as extreme) / (1 + P).

    It stops drawing where nothing is to be found: see :class:`~lightning_failures.stats.sequential.SequentialTest`.

    Args:
        features: (n, D).
        gram: (n, n) scalar products of the centred features, if they are already computed.
        correct: (n,) bool.
        sources: (n,) names of the groups that permutations move as a whole.
        permutations: Largest number P of permutations.
        at_least: P if p is at most 0.01 after the first ``permutations``.
        enough: Number of permutations as extreme after which no more are drawn; None: enough that this changes no
            p-value up to 0.05.
        rng: The source of randomness.
        device: Device on which the products are computed.

    Returns:
        A value in (0, 1]; NaN without permutations.
    """
    if permutations == 0:
        return float("nan")
    statistic = _statistic(features, gram, device)
    observed = float(statistic(~correct[None])[0]) * (1 - _ROUNDING)
    test = SequentialTest(enough_of(permutations) if enough is None else enough)

    def draw(count: int) -> None:
        for failed in permuted_outcomes(~correct, sources, count, rng):
            if test.add(statistic(failed) >= observed):
                break

    draw(permutations)
    if test.p_value <= PROMISING and at_least > permutations:  # enough to be significant among all classes
        if enough is None:
            test.enough = enough_of(at_least)
        draw(at_least - permutations)
    return test.p_value


def _statistic(
    features: NDArray[Any], gram: NDArray[Any] | None, device: str | torch.device
) -> Callable[[BoolArray], NDArray[Any]]:
    """Return the function that computes 4 T / n^4 of labellings (P, n) of failures."""
    n, dim = features.shape
    by_gram = gram is not None and n <= 2 * dim
    matrix = gram if gram is not None and by_gram else features - features.mean(axis=0)
    compiled = by_gram and matrix.dtype == np.float32 and is_cpu(device)
    precision = matrix.dtype  # torch cannot multiply tensors of two dtypes
    matrix = np.pad(matrix, ((0, 0), (0, -n % 16))) if compiled else on_device(matrix, device)

    def statistic(failed: BoolArray) -> NDArray[Any]:
        if compiled:
            form, failures = _compiled_forms(matrix, failed)
        else:
            form, failures = _forms(matrix, failed.astype(precision), by_gram, device)
        pairs = np.maximum(failures * (n - failures), 1)  # stretched groups may lose all failures
        return np.asarray(form / pairs**2.0)

    return statistic


def _forms(
    matrix: Any, failed: NDArray[Any], by_gram: bool, device: str | torch.device
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the forms u'Ku and the numbers of failures, (P,) each, from the Gram matrix or the features."""
    u = on_device(failed, device)
    with full_precision(device):
        products = u @ matrix
    return as_array((products * (u if by_gram else products)).sum(axis=1)), failed.sum(axis=1)


def _compiled_forms(matrix: NDArray[Any], failed: BoolArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the forms u'Ku and the numbers of failures, (P,) each, from the padded float32 Gram matrix."""
    from lightning_failures.stats.kernels.forms import subset_forms

    forms, sizes = np.empty(len(failed), dtype=np.float32), np.empty(len(failed), dtype=np.int64)
    subset_forms(matrix, failed.view(np.uint8), forms, sizes)
    return forms, sizes
