"""Rank the examples of each class by any method, and compare what the methods rank first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.baselines.clusters import fit_failure_clusters
from lightning_failures.baselines.domino import fit_error_aware_mixture
from lightning_failures.core.arrays import as_mask, as_rows, as_vector
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.one_class import MIN_PER_OUTCOME
from lightning_failures.errors import DataError
from lightning_failures.stats.folds import stratified_group_folds

Finder = Callable[[NDArray[Any], BoolArray, NDArray[Any], int], FloatArray]
"""``(embeddings (n, D), failed (n,), new embeddings (m, D), seed) -> hardness (m,)``, for one class."""


def domino(embeddings: NDArray[Any], failed: BoolArray, new: NDArray[Any], seed: int) -> FloatArray:
    """Return the responsibility of the slice with the highest error rate, with two slices, as in Jain et al., B.1.4."""
    model = fit_error_aware_mixture(
        embeddings, np.zeros(len(failed), np.int64), failed.astype(np.int64), slices=2, seed=seed
    )
    return np.asarray(model.responsibilities(new)[:, model.answer_probabilities[:, 1].argmax()])


def clusters(embeddings: NDArray[Any], failed: BoolArray, new: NDArray[Any], seed: int) -> FloatArray:
    """Return the negative distance to the centre of the largest cluster of failures."""
    return fit_failure_clusters(embeddings, failed, seed=seed).hardness(new)


FINDERS: Mapping[str, Finder] = {"domino": domino, "clusters": clusters}
"""The baselines that are fitted to embeddings, by name."""


def hardness_by_class(
    find: Finder,
    embeddings: Any,
    labels: Any,
    failed: Any,
    *,
    groups: Any = None,
    new: tuple[Any, Any] | None = None,
    folds: int = 2,
    seed: int = 0,
) -> FloatArray:
    """Fit a method to each class, and return the hardness of examples that it was not fitted on.

    Args:
        find: The method.
        embeddings: (N, D).
        labels: (N,) int.
        failed: (N,) bool.
        groups: (N,) sources; one is never split between folds. None: every example is its own.
        new: Embeddings (M, D) and labels (M,) of other examples; None: the examples themselves, cross-fitted.
        folds: Number of folds where the examples themselves are ranked.
        seed: Seed of the method, and of the folds.

    Returns:
        (N,) or (M,) float64, the larger the harder, comparable inside a class; NaN in a class with fewer than 10
        failures or successes.

    >>> x = np.repeat(np.eye(2), 20, axis=0) + np.random.default_rng(0).normal(size=(40, 2)) / 9
    >>> failed = np.arange(40) < 20                        # the first half fails, and looks different
    >>> hardness = hardness_by_class(clusters, x, np.zeros(40, int), failed)
    >>> bool(hardness[:20].min() > hardness[20:].max())
    True
    """
    x = as_rows(embeddings, "embeddings")
    y, wrong = as_vector(labels, "labels", len(x)), as_mask(failed, "failed", len(x))
    sources = np.arange(len(x)) if groups is None else as_vector(groups, "groups", len(x))
    targets = y if new is None else as_vector(new[1], "labels", len(new[1]))
    others = None if new is None else as_rows(new[0], "embeddings")
    hardness = np.full(len(targets), np.nan)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        mine = wrong[rows]
        if min(int(mine.sum()), int((~mine).sum())) < MIN_PER_OUTCOME:
            continue
        if others is not None:
            of_class = np.flatnonzero(targets == label)
            hardness[of_class] = find(x[rows], mine, others[of_class], seed)
            continue
        fold = stratified_group_folds(mine, sources[rows], folds=folds, seed=seed)
        for k in range(folds):
            kept, held = rows[fold != k], rows[fold == k]
            if len(held) and wrong[kept].any() and not wrong[kept].all():
                hardness[held] = find(x[kept], wrong[kept], x[held], seed)
    return hardness


@dataclass(frozen=True)
class RankingScore:
    """How much of a subpopulation a method ranks first.

    Attributes:
        method: Name of the method.
        subpopulation: Name of the subpopulation.
        top: Number of examples of each class that count.
        precision: Share of the subpopulation among them, the mean over classes.
        chance: Its share in these classes.
        classes: Number of classes.
    """

    method: str
    subpopulation: str
    top: int
    precision: float
    chance: float
    classes: int


def compare_rankings(
    rankings: Mapping[str, FloatArray],
    labels: Any,
    subpopulations: Mapping[str, Any],
    *,
    top: Sequence[int] = (10, 50),
) -> tuple[RankingScore, ...]:
    """Return the share of each subpopulation among the hardest examples of a class, for every method.

    Only classes count that every method ranks, and that hold some of the subpopulation, but not it alone.

    Args:
        rankings: Hardness (N,) by method; NaN where it is not known.
        labels: (N,) int.
        subpopulations: (N,) bool by name.
        top: Numbers of examples of each class to look at.

    >>> hardness = {"good": np.array([3.0, 2, 1, 0]), "bad": np.array([0.0, 1, 2, 3])}
    >>> found = compare_rankings(hardness, np.zeros(4, int), {"red": [True, True, False, False]}, top=[2])
    >>> [(one.method, one.precision, one.chance) for one in found]
    [('good', 1.0, 0.5), ('bad', 0.0, 0.5)]
    """
    if not rankings:
        return ()
    size = len(next(iter(rankings.values())))
    y = as_vector(labels, "labels", size)
    masks = {name: as_mask(mask, name, size) for name, mask in subpopulations.items()}
    if short := [name for name, values in rankings.items() if len(values) != size]:
        raise DataError(f"Rankings must have one value for each of {size} examples; {', '.join(short)} has not.")
    known = np.logical_and.reduce([np.isfinite(values) for values in rankings.values()])
    scores = []
    for name, mask in masks.items():
        members = {int(label): np.flatnonzero(known & (y == label)) for label in np.unique(y)}
        members = {label: rows for label, rows in members.items() if 0 < mask[rows].sum() < len(rows)}
        if not members:
            continue
        chance = mean_share(mask, members)
        for method, values in rankings.items():
            for k in top:
                hardest = {label: hardest_rows(values, rows, k) for label, rows in members.items()}
                scores.append(RankingScore(method, name, k, mean_share(mask, hardest), chance, len(members)))
    return tuple(scores)


def overlap_of_rankings(
    rankings: Mapping[str, FloatArray], labels: Any, *, top: int = 50
) -> dict[tuple[str, str], float]:
    """Return the share of the hardest examples of a class that two methods have in common, the mean over classes.

    Args:
        rankings: Hardness (N,) by method; NaN where it is not known.
        labels: (N,) int.
        top: Number of examples of each class; at most half of those that both rank.

    >>> rankings = {"a": np.array([3.0, 2, 1, 0]), "b": np.array([2.0, 3, 0, 1])}
    >>> overlap_of_rankings(rankings, np.zeros(4, int))
    {('a', 'b'): 1.0}
    """
    names = list(rankings)
    y = as_vector(labels, "labels", len(rankings[names[0]])) if names else np.empty(0, np.int64)
    overlaps = {}
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = np.isfinite(rankings[first]) & np.isfinite(rankings[second])
            members = {int(label): np.flatnonzero(both & (y == label)) for label in np.unique(y[both])}
            members = {label: rows for label, rows in members.items() if len(rows) > 1}
            ours, theirs = (
                {label: hardest_rows(rankings[name], rows, min(top, len(rows) // 2)) for label, rows in members.items()}
                for name in (first, second)
            )
            if members:
                overlaps[first, second] = mean_overlap(ours, theirs)
    return overlaps


def mean_share(mask: BoolArray, rows: Mapping[int, IntArray]) -> float:
    """Return the share of a mask (N,) among the rows of each class, the mean over classes.

    >>> mean_share(np.array([True, False, True]), {0: np.array([0, 1]), 1: np.array([2])})
    0.75
    """
    return float(np.mean([mask[some].mean() for some in rows.values()]))


def mean_overlap(first: Mapping[int, IntArray], second: Mapping[int, IntArray]) -> float:
    """Return which share of the second rows of a class are among its first rows, the mean over the classes of both.

    >>> mean_overlap({0: np.array([0, 1])}, {0: np.array([1, 2]), 1: np.array([7])})
    0.5
    """
    return float(np.mean([np.isin(second[label], rows).mean() for label, rows in first.items() if label in second]))


def hardest_rows(values: FloatArray, rows: IntArray, k: int) -> IntArray:
    """Return the k rows (m,) with the largest values (N,), the largest first; ties by the order of the rows."""
    return rows[np.argsort(-values[rows], kind="stable")[:k]]
