"""Fit failure directions: one linear SVM per class that separates correct examples from failures in an embedding space.

Source: Jain, Lawrence, Moitra and Madry, Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 3.

``selection="published"`` reproduces the paper's procedure. The default, ``"scaled"``, departs from the paper where
rounding decides on the published grid: below a critical value of C every multiplier is at its bound, the direction is
the class-weighted difference of means, and any bias of an interval is optimal. Therefore the grid is relative to the
critical C of the data, the closed form with the bias in the middle of its interval is used below it, and among scores
that differ by less than sampling error the smallest C wins, not the first best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from lightning_failures.core.arrays import as_mask, as_rows, as_vector, finite_rows_of
from lightning_failures.core.budget import MAX_GRAM_EXAMPLES, SKIPPED_FOR_TIME, Deadline
from lightning_failures.core.text import fit_failed
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.directions.additional import ADDITIONAL_LEVEL, FoundDirection, additional_directions
from lightning_failures.directions.result import NO_ADDITIONAL_PATTERN, FailureDirections, rows_by_class
from lightning_failures.directions.standardize import Moments, standardize
from lightning_failures.directions.svm import SVMFit, centred_gram, fit_published, fit_scaled
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import join_copies, stratified_group_folds
from lightning_failures.stats.permutation_test import permutation_p_value

MIN_PER_OUTCOME = 10
"""A class with fewer failures, or fewer successes, is skipped."""

ALL_THE_SAME = "all its embeddings are the same"
"""Why a class is skipped whose examples cannot be distinguished."""

_IDENTICAL = 1e-6  # largest range of a coordinate at which unit vectors count as identical


def fit_failure_directions(
    embeddings: Any,
    labels: Any,
    correct: Any,
    *,
    ids: Any = None,
    groups: Any = None,
    reference: Any = None,
    whiten: bool = True,
    cs: Sequence[float] | None = None,
    folds: int = 2,
    selection: Literal["scaled", "published"] = "scaled",
    n_directions: int = 1,
    permutations: int = 999,
    seed: int = 0,
    device: str | torch.device = "cpu",
    classes_in_all: int | None = None,
    deadline: Deadline | None = None,
    on_class_error: Callable[[int, Exception], None] | None = None,
) -> FailureDirections:
    """Fit one SVM per class that separates its correctly classified examples from its failures.

    Args:
        embeddings: (N, D) float tensor or array, any float dtype, never written to.
        labels: (N,) int >= 0, the true class of each example.
        correct: (N,) bool, whether the classifier was right.
        ids: (N,) names of the examples, unique within a class. Rows are sorted by id first, so their order has no
            influence. Default: the row number.
        groups: (N,) names of the sources. Examples of one source stay together in folds and permutations. Default:
            every example is its own source. Examples with exactly equal embeddings are copies of one image, and always
            one source, except with ``selection="published"``.
        reference: (M, D) embeddings from which phi takes mean and standard deviation (training embeddings where
            available), or their :class:`~lightning_failures.directions.standardize.Moments`. Default: ``embeddings``.
        whiten: Subtract the mean and divide by the standard deviation. If False, phi only scales to unit length, and w
            is a direction of the encoder's own space (the paper's appendix A.6, for decoders).
        cs: Absolute values of C to choose from. Default: the grid of ``selection``.
        folds: Number of cross-validation folds.
        selection: ``"scaled"``: 1, 3, 10, 30 and 100 times the critical C (of each training fold, then of all data);
            folds by stratified hash of the group; the smallest C within two standard errors of the best score wins. The
            lower limit of the grid, the difference of means with the bias in the middle of its interval, makes the same
            decisions as 1 x critical C, so it is not tried separately. A class of more than 5,000 examples is fitted on
            a fixed sample of 5,000 and scored on all.
            ``"published"``: scikit-learn's ``SVC(kernel="linear", class_weight="balanced")``, C from 1e-6 to 1,
            ``cross_val_score(cv=folds, scoring="balanced_accuracy")``, the first best C, refit on all; unshuffled folds
            unless there are groups.
        n_directions: Maximum number of directions per class. An additional direction is reported where failures are in
            excess at both ends of an axis along which they differ: see :mod:`lightning_failures.directions.additional`.
            Its p-value permutes correctness within strata of the previous directions; the first p > 0.05 ends the
            search.
        permutations: Permutations of the screening test for every class. Classes with p <= 0.01 get at least 20 x the
            total number of classes, so that one true mode among hundreds can survive Benjamini-Hochberg. 0: no test.
        seed: The only source of randomness; no global generator is used.
        device: Device on which Gram matrices and the products of the permutations are computed, in single precision.
        classes_in_all: Total number of classes that are tested, if ``labels`` holds only some of them. Default: the
            number of classes in ``labels`` that can be fitted.
        deadline: Classes are fitted in the order of their number of failures, most first; those that the deadline
            leaves out are in ``skipped``.
        on_class_error: Called with a class whose fit raises an error, and the error; the class is then in ``skipped``.
            None: the error is raised.

    Returns:
        The directions. A class with fewer than 10 failures or 10 successes, or with too few sources to fill the folds,
        is in ``skipped`` with the reason.

    Raises:
        DataError: Shapes do not match, a value is not finite, a label is negative, or a class has an id twice.
        ConfigurationError: An option outside its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 8))
        >>> correct = x[:, 0] + 0.3 * rng.normal(size=200) > 0
        >>> directions = fit_failure_directions(x, np.zeros(200, dtype=int), correct)
        >>> int(directions.weight[0].abs().argmax()), bool(directions.p_value[0] <= 0.001)
        (0, True)
    """
    _check_options(selection, folds, n_directions, permutations, seed, cs)
    x = as_rows(embeddings, "embeddings")
    n, dim = x.shape
    y = as_vector(labels, "labels", n)
    if n and (y.dtype.kind != "i" or y.min() < 0):
        raise DataError("labels must be integers >= 0")
    right = as_mask(correct, "correct", n)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = names if groups is None else as_vector(groups, "groups", n)
    published = selection == "published"
    if not published:
        sources = join_copies(sources, x)

    with one_thread():
        mean, std = np.zeros(dim), np.ones(dim)
        if whiten:
            moments = _moments(reference, x, names)
            mean, std = moments.mean, moments.std
            if max(np.abs(mean).max(initial=0.0), std.max(initial=0.0)) > np.finfo(np.float32).max:
                raise DataError("embeddings must lie within the range of float32")
        precision = np.float64 if published else np.float32
        phi_mean, phi_std = mean.astype(precision), std.astype(precision)

        # the classes that can be fitted, most failures first, so that a deadline costs those that matter least
        problems, skipped = _class_problems(
            x, y, names, right, sources, folds, seed, unshuffled=published and groups is None
        )
        in_all = len(problems) if classes_in_all is None else classes_in_all
        problems.sort(key=lambda problem: -problem.failures)

        search = _DirectionSearch(published, cs, permutations, 20 * in_all, n_directions, seed, device)
        fitted: list[_FittedClass] = []
        for problem in problems:
            if deadline is not None and deadline.passed:
                skipped[problem.label] = SKIPPED_FOR_TIME
                continue
            try:
                features = _standardized(x[problem.rows], phi_mean, phi_std)
                if np.ptp(features, axis=0).max(initial=0.0) < _IDENTICAL:
                    skipped[problem.label] = ALL_THE_SAME
                    continue
                fitted.append(_FittedClass(problem, search.directions(problem, features)))
            except Exception as error:
                if on_class_error is None:
                    raise
                on_class_error(problem.label, error)
                skipped[problem.label] = fit_failed(error)

    fitted.sort(key=lambda one: one.problem.label)
    phi: dict[str, Any] = {
        "mean": torch.from_numpy(mean.astype(np.float32)),
        "std": torch.from_numpy(std.astype(np.float32)),
        "whiten": whiten,
    }
    ranks = []
    for rank in range(max((len(one.directions) for one in fitted), default=1)):
        reasons = dict(sorted(skipped.items()))
        if rank:
            ended = [one.problem.label for one in fitted if len(one.directions) == rank]
            reasons = dict.fromkeys(ended, NO_ADDITIONAL_PATTERN)
        ranks.append(FailureDirections(**_stack(fitted, rank, n, dim), **phi, skipped=reasons))
    return dataclasses.replace(ranks[0], further=tuple(ranks[1:]))


def _moments(reference: Any, x: NDArray[Any], names: NDArray[Any]) -> Moments:
    """Return the moments that phi standardizes with."""
    if reference is None:  # sum in the order of the ids: the last bit must not depend on the order of the rows
        return Moments.of(x, np.argsort(names, kind="stable"))
    moments = reference if isinstance(reference, Moments) else Moments.of(as_rows(reference, "reference"))
    if len(moments.mean) != x.shape[1]:
        raise DataError(f"reference must have {x.shape[1]} dimensions like embeddings, got {len(moments.mean)}")
    return moments


def _standardized(x: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[Any]:
    """Return phi of the embeddings (n, D) of a class.

    Raises:
        DataError: It is not finite: the embeddings lie too far from those that phi standardizes with.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        features = standardize(x, mean, std)
    n_bad = np.count_nonzero(~finite_rows_of(features))
    if n_bad:
        raise DataError(
            f"{n_bad} of its {len(x)} embeddings, up to {float(np.abs(x).max()):.3g}, lie too far from the mean for"
            f" {mean.dtype} numbers"
        )
    return features


@dataclass(frozen=True)
class _ClassProblem:
    """The n examples of one class, sorted by fold and then by id."""

    label: int
    rows: IntArray  # rows of the caller
    correct: BoolArray
    sources: NDArray[Any]
    fold: IntArray

    @property
    def failures(self) -> int:
        """Number of failures."""
        return int(np.count_nonzero(~self.correct))


def _class_problems(
    x: NDArray[Any],
    labels: IntArray,
    names: NDArray[Any],
    correct: BoolArray,
    sources: NDArray[Any],
    folds: int,
    seed: int,
    *,
    unshuffled: bool,
) -> tuple[list[_ClassProblem], dict[int, str]]:
    """Return the classes that can be fitted, by label, and the reason for each class that cannot."""
    problems, skipped = [], {}
    for label, rows in rows_by_class(labels):
        rows = rows[np.argsort(names[rows], kind="stable")]
        if len(np.unique(names[rows])) < len(rows):
            raise DataError(f"ids must be unique within a class; class {label} has one twice")
        if unshuffled:
            fold = _unshuffled_folds(correct[rows], folds)
        else:
            fold = stratified_group_folds(~correct[rows], sources[rows], folds=folds, seed=seed)
            by_fold = np.argsort(fold, kind="stable")  # makes each fold one block of the Gram matrix
            rows, fold = rows[by_fold], fold[by_fold]
        reason = _why_skipped(correct[rows], fold, folds)
        if reason is not None and _too_few(correct[rows]) is None and bool((x[rows] == x[rows[0]]).all()):
            reason = ALL_THE_SAME  # copies of one image, whose single source cannot fill the folds
        if reason is None:
            problems.append(_ClassProblem(label, rows, correct[rows], sources[rows], fold))
        else:
            skipped[label] = reason
    return problems, skipped


@dataclass(frozen=True)
class _DirectionSearch:
    """The search for the directions of one class."""

    published: bool
    cs: Sequence[float] | None
    permutations: int
    at_least: int
    most: int
    seed: int
    device: str | torch.device

    def directions(self, problem: _ClassProblem, features: NDArray[Any]) -> list[FoundDirection]:
        """Fit the first direction and, if it passes its test, search for additional ones."""
        # without the Gram matrix of all examples a large class is fitted on a sample
        with_gram = not self.published and len(features) <= MAX_GRAM_EXAMPLES
        gram = centred_gram(features, self.device) if with_gram else None
        first = self._fit(features, problem.correct, problem.fold, gram)
        p_value = permutation_p_value(
            features,
            gram,
            problem.correct,
            problem.sources,
            permutations=self.permutations,
            at_least=self.at_least,
            rng=np.random.default_rng([self.seed, problem.label, 0]),
            device=self.device,
        )
        directions = [FoundDirection(first, p_value)]
        if self.most > 1 and p_value <= ADDITIONAL_LEVEL:
            directions += additional_directions(
                first,
                features,
                problem.correct,
                problem.sources,
                problem.fold,
                fit=self._fit,
                most=self.most - 1,
                permutations=self.permutations,
                seed=(self.seed, problem.label),
            )
        return directions

    def _fit(
        self, features: NDArray[Any], correct: BoolArray, fold: IntArray, gram: NDArray[Any] | None = None
    ) -> SVMFit:
        if self.published:
            return fit_published(features, correct, fold, self.cs)
        return fit_scaled(features, correct, fold, self.cs, gram=gram)


@dataclass(frozen=True)
class _FittedClass:
    """A class and its directions, the first one first."""

    problem: _ClassProblem
    directions: list[FoundDirection]


def _stack(fitted: list[_FittedClass], rank: int, n: int, dim: int) -> dict[str, Any]:
    """Return the directions of one rank as tensors of K rows, and their out-of-fold values as a tensor of n rows."""
    classes = [one.problem for one in fitted if len(one.directions) > rank]
    tested = [one.directions[rank] for one in fitted if len(one.directions) > rank]
    svms = [direction.svm for direction in tested]
    out_of_fold = np.full(n, np.nan, dtype=np.float32)
    for problem, svm in zip(classes, svms, strict=True):
        out_of_fold[problem.rows] = svm.out_of_fold
    return {
        "classes": torch.tensor([problem.label for problem in classes], dtype=torch.int64),
        "weight": torch.from_numpy(np.array([svm.weight for svm in svms], dtype=np.float32).reshape(-1, dim)),
        "bias": torch.tensor([svm.bias for svm in svms], dtype=torch.float32),
        "cv_score": torch.tensor([svm.score for svm in svms], dtype=torch.float64),
        "cv_score_stderr": torch.tensor([svm.stderr for svm in svms], dtype=torch.float64),
        "c": torch.tensor([svm.c for svm in svms], dtype=torch.float64),
        "p_value": torch.tensor([direction.p_value for direction in tested], dtype=torch.float64),
        "out_of_fold": torch.from_numpy(out_of_fold),
    }


def _unshuffled_folds(correct: BoolArray, folds: int) -> IntArray:
    """Return the folds that scikit-learn makes of ``cv=folds``; all 0 where an outcome cannot fill the folds."""
    fold = np.zeros(len(correct), dtype=np.int64)
    if min(correct.sum(), (~correct).sum()) >= folds:
        for k, (_, held) in enumerate(StratifiedKFold(folds).split(correct, correct)):
            fold[held] = k
    return fold


def _why_skipped(correct: BoolArray, fold: IntArray, folds: int) -> str | None:
    """Return why a class cannot be fitted, or None if it can."""
    reason = _too_few(correct)
    if reason is not None:
        return reason
    for mask, outcomes in ((~correct, "failures"), (correct, "successes")):
        if len(np.unique(fold[mask])) < folds:
            return f"its {outcomes} come from too few sources for {folds} folds"
    return None


def _too_few(correct: BoolArray) -> str | None:
    """Return which outcome has too few examples, or None if both have enough."""
    for mask, singular, plural in ((~correct, "failure", "failures"), (correct, "success", "successes")):
        count = int(mask.sum())
        if count < MIN_PER_OUTCOME:
            return f"{count} {singular if count == 1 else plural}; at least {MIN_PER_OUTCOME} are needed"
    return None


def _check_options(
    selection: str, folds: int, n_directions: int, permutations: int, seed: int, cs: Sequence[float] | None
) -> None:
    """Raise a ConfigurationError for an option outside its range."""
    if selection not in ("scaled", "published"):
        raise ConfigurationError(
            f"fit_failure_directions: selection must be 'scaled' or 'published', got {selection!r}"
        )
    for name, value, least in (
        ("folds", folds, 2),
        ("n_directions", n_directions, 1),
        ("permutations", permutations, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigurationError(f"fit_failure_directions: {name} must be at least {least}, got {value}")
    if cs is not None and (len(cs) == 0 or min(cs) <= 0):
        raise ConfigurationError(f"fit_failure_directions: cs must hold positive numbers, got {cs!r}")
