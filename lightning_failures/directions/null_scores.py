"""Null distribution of CV scores: the same folds, grid and selection of C under permuted correctness.

The screening p-value answers whether there is a pattern. The null scores are the reference for a CV score, since the
best score of a grid on few failures is seldom 0.5 by chance. Each permutation takes a fit, so null scores are computed
for a few classes at the end of an analysis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, as_rows
from lightning_failures.core.budget import MAX_GRAM_EXAMPLES, Deadline
from lightning_failures.core.text import failure_notes
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.members import ClassSubset, RowValues
from lightning_failures.data.partition import Partition
from lightning_failures.data.report import ClassReport
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.standardize import standardize
from lightning_failures.directions.svm import FIXABLE_MULTIPLE, centred_gram, score_scaled
from lightning_failures.stats.folds import permuted_outcomes, stratified_group_folds

CLASSES_WITH_NULL_SCORES = 10
"""Number of classes in an analysis that get null scores."""

INTERVAL = (0.05, 0.95)
"""Quantiles that enclose nine of ten scores by chance. They take 19 permutations; 19 of 20 scores would take 39."""

_FOLDS = 2  # the default of fit_failure_directions
_STREAM = 1000  # a random stream other than those of the permutation tests


def add_null_cv_scores(
    classes: tuple[ClassReport, ...],
    directions: FailureDirections,
    members: list[ClassSubset],
    embedded: RowValues,
    class_indices: list[int],
    share: Partition,
    *,
    permutations: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
    deadline: Deadline | None = None,
    raise_errors: bool = False,
) -> tuple[tuple[ClassReport, ...], int, tuple[str, ...]]:
    """Add the CV scores of permuted correctness to the reports of some classes.

    Args:
        classes: K reports.
        directions: Directions of the classes, fitted with the default selection.
        members: The examples of each class on which the directions were fitted.
        embedded: Embeddings of these examples, at least for the classes that this process owns.
        class_indices: Indices of the classes that get null scores, the most important first.
        share: The classes that this process owns.
        permutations: Number of permutations per class.
        seed: The seed of the directions.
        device: Device on which Gram matrices are computed.
        deadline: Classes that the deadline does not leave time for are skipped.
        raise_errors: Raise the error of a class. Otherwise the class stays without null scores.

    Returns:
        The reports, the same on all processes, the number of classes skipped because the time ran out, and notes on
        classes that failed.
    """

    def scores_of_class(k: int) -> FloatArray | None:
        subset = members[k].take(~as_array(directions.in_doubt)[members[k].rows]).by_id()
        x = as_rows(embedded[subset.rows], "embeddings")
        with one_thread():
            return null_cv_scores(
                standardize(x, directions.mean.numpy(), directions.std.numpy()),
                subset,
                permutations,
                multiple=directions.multiple,
                rng=np.random.default_rng([seed, k, _STREAM]),
                seed=seed,
                device=device,
                deadline=deadline,
            )

    def summaries_of_own_classes() -> dict[int, dict[str, Any] | str]:
        summaries: dict[int, dict[str, Any] | str] = {}
        for k in filter(share.owns, class_indices):
            try:
                scores = scores_of_class(k)
            except Exception as error:
                if raise_errors:
                    raise
                summaries[k] = f"{type(error).__name__}: {error}"
                continue
            if scores is None:
                break
            summaries[k] = _summary(scores)
        return summaries

    results = share.merge_results(summaries_of_own_classes)
    summaries = {k: result for k, result in results.items() if isinstance(result, dict)}
    failed = [(classes[k].name, result) for k, result in sorted(results.items()) if isinstance(result, str)]
    reports = tuple(replace(entry, **summaries.get(k, {})) for k, entry in enumerate(classes))
    return reports, len(class_indices) - len(results), failure_notes("CV scores by chance for class", failed)


def null_cv_scores(
    features: NDArray[Any],
    members: ClassSubset,
    permutations: int,
    *,
    multiple: float = FIXABLE_MULTIPLE,
    rng: np.random.Generator,
    seed: int = 0,
    device: str | torch.device = "cpu",
    deadline: Deadline | None = None,
) -> FloatArray | None:
    """Return the CV scores of one class under permuted correctness.

    Whole sources are permuted and then assigned to new stratified folds, by the rule of the fit. All permutations share
    one Gram matrix.

    Args:
        features: (n, D), phi of the examples of one class, by id.
        members: The examples.
        permutations: Number P of permutations.
        multiple: C in units of the critical C.
        rng: The source of randomness.
        seed: Seed of the folds.
        device: Device on which the Gram matrix is computed.
        deadline: The time at which to give up.

    Returns:
        At most (P,) scores: a permutation that leaves a fold without failures or successes has no score. None if the
        deadline passed first.
    """
    gram = centred_gram(features, device) if len(features) <= MAX_GRAM_EXAMPLES else None
    scores = []
    for correct, fold in _labellings(members, permutations, rng, seed):
        if deadline is not None and deadline.passed:
            return None
        scores.append(score_scaled(features, correct, fold, multiple=multiple, gram=gram))
    return np.array(scores)


def _labellings(
    members: ClassSubset, permutations: int, rng: np.random.Generator, seed: int
) -> Iterator[tuple[BoolArray, IntArray]]:
    """Yield permuted correctness (n,) and its folds (n,)."""
    sources = members.ids if members.sources is None else members.sources
    for block in permuted_outcomes(members.failed, sources, permutations, rng):
        for failed in block:
            fold = stratified_group_folds(failed, sources, folds=_FOLDS, seed=seed)
            outcomes_of_folds = np.unique(2 * fold + failed)
            if len(outcomes_of_folds) == 2 * _FOLDS:
                yield ~failed, fold


def _summary(scores: FloatArray) -> dict[str, Any]:
    """Return the fields of a class report that describe the null scores."""
    if not len(scores):
        return {}
    low, high = np.quantile(scores, INTERVAL, method="weibull").tolist()  # P + 1 scores with the class's own
    return {
        "cv_null_mean": float(scores.mean()),
        "cv_null_interval": (low, high),
        "cv_null_permutations": len(scores),
    }
