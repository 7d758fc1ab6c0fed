"""Which CV scores chance gives: the same folds, grid and choice of C under permuted correctness.

The screening p-value says whether there is a pattern; this says what a CV score is to be read against, because the best
of a grid on few failures is seldom 0.5. It takes a fit a permutation, so it is for a few classes, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_rows
from lightning_failures.core.budget import MAX_GRAM_EXAMPLES, Deadline
from lightning_failures.core.threads import one_thread
from lightning_failures.data.members import ClassSubset, RowValues
from lightning_failures.data.partition import Partition
from lightning_failures.data.report import ClassReport
from lightning_failures.directions.fit import FailureDirections
from lightning_failures.directions.standardize import standardize
from lightning_failures.directions.svm import centred_gram, fit_scaled
from lightning_failures.stats.folds import permuted_outcomes, stratified_group_folds

CLASSES_WITH_NULL_SCORES = 10
"""In an analysis."""

INTERVAL = (0.05, 0.95)
"""Nine of ten scores by chance lie inside, from 19 permutations on; for 19 of 20 it would take 39."""

_FOLDS = 2  # as of the directions
_STREAM = 1000  # apart from the permutations of the tests


def add_null_cv_scores(
    classes: tuple[ClassReport, ...],
    directions: FailureDirections,
    members: list[ClassSubset],
    embedded: RowValues,
    wanted: list[int],
    share: Partition,
    *,
    permutations: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
    deadline: Deadline | None = None,
) -> tuple[tuple[ClassReport, ...], int]:
    """Put the CV scores of permuted correctness beside those of the report.

    Args:
        classes: K reports.
        directions: Their directions, fitted with the default selection.
        members: The examples of each class that the directions have looked at.
        embedded: Their embeddings, of the classes that this process owns at least.
        wanted: Which classes, those that matter most first.
        share: What this process does.
        permutations: How many a class.
        seed: That of the directions.
        device: Where Gram matrices are computed.
        deadline: Classes that it comes before are left out.

    Returns:
        The reports, the same on all processes, and how many of the classes wanted were left out for want of time.
    """

    def work() -> dict[int, dict[str, Any]]:
        made: dict[int, dict[str, Any]] = {}
        for k in filter(share.owns, wanted):
            one = members[k].by_id()
            x = as_rows(embedded[one.rows], "embeddings")
            with one_thread():
                features = standardize(x, directions.mean.numpy(), directions.std.numpy())
                scores = null_cv_scores(
                    features,
                    one,
                    permutations,
                    rng=np.random.default_rng([seed, k, _STREAM]),
                    seed=seed,
                    device=device,
                    deadline=deadline,
                )
            if scores is None:
                break
            made[k] = _summary(scores)
        return made

    made = share.merge_results(work)
    return tuple(replace(entry, **made.get(k, {})) for k, entry in enumerate(classes)), len(wanted) - len(made)


def null_cv_scores(
    features: NDArray[Any],
    members: ClassSubset,
    permutations: int,
    *,
    rng: np.random.Generator,
    seed: int = 0,
    device: str | torch.device = "cpu",
    deadline: Deadline | None = None,
) -> NDArray[np.float64] | None:
    """Return the CV scores of permuted correctness.

    Whole sources are permuted, and dealt to stratified folds anew, by the rule of the fit. All share one Gram matrix.

    Args:
        features: (n, D), phi of the examples of one class, by id.
        members: These examples.
        permutations: P.
        rng: The source of randomness.
        seed: Of the folds.
        device: Where the Gram matrix is computed.
        deadline: When to give up.

    Returns:
        At most (P,): a permutation that leaves a fold without failures or successes has no score. None if the deadline
        came first.
    """
    gram = centred_gram(features, device) if len(features) <= MAX_GRAM_EXAMPLES else None
    scores = []
    for correct, fold in _labellings(members, permutations, rng, seed):
        if deadline is not None and deadline.passed:
            return None
        scores.append(fit_scaled(features, correct, fold, gram=gram).score)
    return np.array(scores)


def _labellings(
    members: ClassSubset, permutations: int, rng: np.random.Generator, seed: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Permuted correctness (n,), and its folds (n,)."""
    sources = members.ids if members.sources is None else members.sources
    for block in permuted_outcomes(members.failed, sources, permutations, rng):
        for failed in block:
            fold = stratified_group_folds(failed, sources, folds=_FOLDS, seed=seed)
            if len(np.unique(2 * fold + failed)) == 2 * _FOLDS:
                yield ~failed, fold


def _summary(scores: NDArray[np.float64]) -> dict[str, Any]:
    """The fields of a class."""
    if not len(scores):
        return {}
    low, high = np.quantile(scores, INTERVAL, method="weibull").tolist()  # of P + 1 scores, one is the class's
    return {
        "cv_null_mean": float(scores.mean()),
        "cv_null_interval": (low, high),
        "cv_null_permutations": len(scores),
    }
