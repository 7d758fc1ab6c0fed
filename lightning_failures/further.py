"""Further failure directions of a class: what is left once the former ones are projected out.

Source: DESIGN of this package; the paper has one direction a class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_failures.splits import permutation_blocks
from lightning_failures.svm import SVMFit, balanced_signs

__all__ = ["further_directions"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Fit = Callable[[Floats, Mask, Integers], SVMFit]
"""(features, correct, fold) -> the SVM."""

LEVEL = 0.05
"""A direction with a larger p-value ends the search."""


def further_directions(
    first: SVMFit,
    features: Floats,
    correct: Mask,
    sources: NDArray[np.generic],
    fold: Integers,
    *,
    fit: Fit,
    most: int,
    permutations: int,
    seed: tuple[int, ...],
) -> list[tuple[SVMFit, float]]:
    """Seek directions beside the first one, until one does not pass its test.

    Args:
        first: The first direction.
        features: (n, D), phi.
        correct: (n,) bool.
        sources: (n,) names of the groups that permutations move as wholes.
        fold: (n,) int.
        fit: Fits one SVM.
        most: Find at most so many.
        permutations: Permutations of each test; 0: nothing is found.
        seed: The source of randomness.

    Returns:
        Each direction with its p-value.
    """
    found: list[tuple[SVMFit, float]] = []
    former = first
    values = [first.out_of_fold]
    while len(found) < most and permutations:
        unit = former.weight / np.linalg.norm(former.weight)
        features = features - np.outer(features @ unit, unit)
        rng = np.random.default_rng([*seed, len(found) + 1])
        p = _p_value(features, correct, sources, _strata(values), permutations, rng)
        if p > LEVEL:
            break
        former = fit(features, correct, fold)
        values.append(former.out_of_fold)
        found.append((former, p))
    return found


def _p_value(
    features: Floats,
    correct: Mask,
    sources: NDArray[np.generic],
    strata: Integers,
    permutations: int,
    rng: np.random.Generator,
) -> float:
    """Return the p-value of the squared distance of the balanced class means, permuted within strata."""

    def statistic(labels: Mask) -> Floats:
        return np.asarray(np.square(balanced_signs(labels) @ features).sum(axis=1))

    observed = statistic(correct[None])[0] * (1 - 1e-9)
    blocks = permutation_blocks(sources, permutations, rng, strata=strata)
    return (1 + sum(int((statistic(correct[rows]) >= observed).sum()) for rows in blocks)) / (1 + permutations)


def _strata(former: list[Floats]) -> Integers:
    """Number cells of similar former decision values: deciles of one, about ten cells in all of several."""
    bins = max(2, round(10 ** (1 / len(former))))
    cell = np.zeros(len(former[0]), dtype=np.int64)
    for values in former:
        rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        cell = cell * bins + rank * bins // len(values)
    return cell
