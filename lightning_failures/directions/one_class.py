"""The directions of one class: its folds, the examples to fit on, the search for directions, and their tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from lightning_failures.core.budget import MAX_GRAM_EXAMPLES
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.additional import ADDITIONAL_LEVEL, FoundDirection, additional_directions
from lightning_failures.directions.result import rows_by_class
from lightning_failures.directions.svm import WHOLE_MULTIPLE, SVMFit, centred_gram, fit_published, fit_scaled
from lightning_failures.errors import DataError
from lightning_failures.stats.agreement import positive_agreement
from lightning_failures.stats.folds import stratified_group_folds
from lightning_failures.stats.permutation_test import permutation_p_value

MIN_PER_OUTCOME = 10
"""A class with fewer failures, or fewer successes, is skipped."""

MIN_UNDOUBTED = 5
"""So is a class with fewer of them whose label is not in doubt: a few doubts cost a small class no direction."""

ALL_THE_SAME = "all its embeddings are the same"
"""Why a class is skipped whose examples cannot be distinguished."""


@dataclass(frozen=True)
class ClassProblem:
    """The n examples of one class, sorted by fold and then by id.

    Attributes:
        label: The class.
        rows: (n,) rows of the caller.
        correct: (n,) bool.
        sources: (n,) names of the sources.
        fold: (n,) int.
        doubted: (n,) bool, the examples whose label is in doubt: scores and tests leave them out.
        fitted: (n,) bool, the examples to fit on.
    """

    label: int
    rows: IntArray
    correct: BoolArray
    sources: NDArray[Any]
    fold: IntArray
    doubted: BoolArray
    fitted: BoolArray

    @property
    def failures(self) -> int:
        """Number of failures."""
        return int(np.count_nonzero(~self.correct))


@dataclass(frozen=True)
class FittedClass:
    """A class and its directions.

    Attributes:
        problem: The examples.
        directions: The directions, the first one first.
        whole_values: (n,) out-of-fold values of the first direction if no label were doubted.
        flag_agreement: Positive agreement of the flags of the first direction under two divisions into folds; NaN where
            there is no pattern.
    """

    problem: ClassProblem
    directions: list[FoundDirection]
    whole_values: FloatArray
    flag_agreement: float


def class_problems(
    x: NDArray[Any],
    labels: IntArray,
    names: NDArray[Any],
    correct: BoolArray,
    sources: NDArray[Any],
    folds: int,
    seed: int,
    *,
    doubted: BoolArray,
    fitted: BoolArray,
    unshuffled: bool,
) -> tuple[list[ClassProblem], dict[int, str]]:
    """Return the classes that can be fitted, by label, and the reason for each class that cannot.

    Raises:
        DataError: A class has an id twice.
    """
    problems, skipped = [], {}
    for label, rows in rows_by_class(labels):
        rows = rows[np.argsort(names[rows], kind="stable")]
        if len(np.unique(names[rows])) < len(rows):
            raise DataError(f"ids must be unique within a class; class {label} has one twice")
        if unshuffled:
            fold = _unshuffled_folds(correct[rows], folds)
        else:
            to_learn = ~correct[rows] & ~doubted[rows]
            fold = stratified_group_folds(to_learn, sources[rows], folds=folds, seed=seed)
            by_fold = np.argsort(fold, kind="stable")  # makes each fold one block of the Gram matrix
            rows, fold = rows[by_fold], fold[by_fold]
        sure = ~doubted[rows]
        reason = _too_few(correct[rows]) or _why_skipped(correct[rows][sure], fold[sure], folds)
        if reason is not None and _too_few(correct[rows]) is None and bool((x[rows] == x[rows[0]]).all()):
            reason = ALL_THE_SAME  # copies of one image, whose single source cannot fill the folds
        if reason is not None and not sure.all() and _too_few(correct[rows]) is None:
            reason = f"of the examples whose label is not in doubt, {reason}"
        if reason is None:
            parts = (correct[rows], sources[rows], fold, doubted[rows], fitted[rows])
            problems.append(ClassProblem(label, rows, *parts))
        else:
            skipped[label] = reason
    return problems, skipped


@dataclass(frozen=True)
class DirectionSearch:
    """The search for the directions of one class.

    Attributes:
        published: Whether the procedure is that of the paper.
        multiple: C in units of the critical C.
        cs: Absolute values of C to choose from instead; None: the multiple, or the grid of the paper.
        permutations: Permutations of the screening test.
        at_least: The same for promising classes.
        most: Maximum number of directions.
        seed: The only source of randomness.
        device: Device of large matrix products.
    """

    published: bool
    multiple: float
    cs: Sequence[float] | None
    permutations: int
    at_least: int
    most: int
    seed: int
    device: str | torch.device

    def fit(self, problem: ClassProblem, features: NDArray[Any]) -> FittedClass:
        """Fit the first direction and, if it passes its test, search for additional ones."""
        # without the Gram matrix of all examples a large class is fitted on a sample
        with_gram = not self.published and len(features) <= MAX_GRAM_EXAMPLES
        gram = centred_gram(features, self.device) if with_gram else None
        sure = ~problem.doubted
        fit_all = partial(self._fit, features, problem.correct, problem.fold, gram)
        first = fit_all() if sure.all() else fit_all(problem.fitted, sure)
        gram_of_all = gram
        same = self.published or (problem.fitted.all() and self.multiple == WHOLE_MULTIPLE)
        whole = first if same else fit_all(multiple=WHOLE_MULTIPLE)

        # labels are doubted whatever the model answers, so among the others correctness is exchangeable
        tested, correct, sources = features, problem.correct, problem.sources
        if not sure.all():
            tested, correct, sources = features[sure], correct[sure], sources[sure]
            gram = centred_gram(tested, self.device) if with_gram else None
        p_value = permutation_p_value(
            tested,
            gram,
            correct,
            sources,
            permutations=self.permutations,
            at_least=self.at_least,
            rng=np.random.default_rng([self.seed, problem.label, 0]),
            device=self.device,
        )
        directions = [FoundDirection(first, p_value)]
        may_be_pattern = p_value <= ADDITIONAL_LEVEL
        agreement = self._flag_agreement(problem, features, gram_of_all, first) if may_be_pattern else float("nan")
        if self.most > 1 and may_be_pattern:
            # the difference of means is the best blend of the modes: larger values of C turn away from one of them
            blend = first.of_examples(sure)
            if not (self.published or self.cs):
                blend = self._fit(tested, correct, problem.fold[sure], gram, multiple=1.0)
            additional = additional_directions(
                blend,
                tested,
                correct,
                sources,
                problem.fold[sure],
                fit=self._fit,
                most=self.most - 1,
                permutations=self.permutations,
                seed=(self.seed, problem.label),
            )
            directions += [FoundDirection(one.svm.for_all(features, sure), one.p_value) for one in additional]
        return FittedClass(problem, directions, whole.out_of_fold, agreement)

    def _flag_agreement(
        self, problem: ClassProblem, features: NDArray[Any], gram: NDArray[Any] | None, first: SVMFit
    ) -> float:
        """Return the positive agreement of the flags with those under another division into folds.

        NaN where an outcome cannot fill the other folds, or nothing is flagged.
        """
        sure = ~problem.doubted
        folds = len(np.unique(problem.fold))
        to_learn = ~problem.correct & sure
        fold = stratified_group_folds(to_learn, problem.sources, folds=folds, seed=self.seed + 1)
        if _why_skipped(problem.correct[sure], fold[sure], folds) is not None:
            return float("nan")
        other = self._fit(features, problem.correct, fold, gram, problem.fitted, sure)
        return positive_agreement(first.out_of_fold < 0, other.out_of_fold < 0)

    def _fit(
        self,
        features: NDArray[Any],
        correct: BoolArray,
        fold: IntArray,
        gram: NDArray[Any] | None = None,
        fitted: BoolArray | None = None,
        scored: BoolArray | None = None,
        *,
        multiple: float | None = None,
    ) -> SVMFit:
        if self.published:
            return fit_published(features, correct, fold, self.cs)
        at = self.multiple if multiple is None else multiple
        return fit_scaled(features, correct, fold, self.cs, multiple=at, gram=gram, fitted=fitted, scored=scored)


def _unshuffled_folds(correct: BoolArray, folds: int) -> IntArray:
    """Return the folds that scikit-learn makes of ``cv=folds``; all 0 where an outcome cannot fill the folds."""
    fold = np.zeros(len(correct), dtype=np.int64)
    if min(correct.sum(), (~correct).sum()) >= folds:
        for k, (_, held) in enumerate(StratifiedKFold(folds).split(correct, correct)):
            fold[held] = k
    return fold


def _why_skipped(correct: BoolArray, fold: IntArray, folds: int) -> str | None:
    """Return why examples whose label is not in doubt cannot be fitted, or None if they can."""
    reason = _too_few(correct, MIN_UNDOUBTED)
    if reason is not None:
        return reason
    for mask, outcomes in ((~correct, "failures"), (correct, "successes")):
        if len(np.unique(fold[mask])) < folds:
            return f"its {outcomes} come from too few sources for {folds} folds"
    return None


def _too_few(correct: BoolArray, least: int = MIN_PER_OUTCOME) -> str | None:
    """Return which outcome has too few examples, or None if both have enough."""
    for mask, singular, plural in ((~correct, "failure", "failures"), (correct, "success", "successes")):
        count = int(mask.sum())
        if count < least:
            return f"{count} {singular if count == 1 else plural}; at least {least} are needed"
    return None
