"""The linear SVM of one class, and the choice of its C.

L1-hinge loss, free bias, balanced class weights: minimise |w|^2 / 2 + C sum_i w_i max(0, 1 - y_i (w . phi_i + b)), with
y = +1 for a success and -1 for a failure. The Gram matrix is computed once a class and serves all values of C and all
folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import PredefinedSplit, cross_val_predict, cross_val_score
from sklearn.svm import SVC

from lightning_failures.splits import stable_hash

__all__ = ["SVMFit", "balanced_signs", "critical_c", "fit_published", "fit_scaled", "score_stderr", "solve"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

PUBLISHED_CS = tuple(10.0**e for e in range(-6, 1))
CRITICAL_MULTIPLES = (1.0, 3.0, 10.0, 30.0, 100.0)
TOLERANCE = 2.0
"""Scores no further apart than this many standard errors are not told apart: the smallest C among them wins."""
MOST_EXAMPLES = 5000
"""A larger class is fitted on this many of its examples: its Gram matrix would not fit into memory."""


@dataclass(frozen=True)
class SVMFit:
    """The SVM of one class at the C that did best.

    Attributes:
        weight: (D,), w.
        bias: b.
        c: The C.
        score: Mean balanced accuracy over the folds.
        out_of_fold: (n,) decision values, each from the fold that did not see the example.
    """

    weight: Floats
    bias: float
    c: float
    score: float
    out_of_fold: Floats


def fit_published(
    features: Floats, correct: Mask, fold: NDArray[np.int64], cs: Sequence[float] | None = None
) -> SVMFit:
    """Follow the published procedure with scikit-learn's own functions: grid of C, first best, refit on all.

    Args:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int.
        cs: The grid; default 1e-6 ... 1 by decades.
    """
    cv = PredefinedSplit(fold)
    best, best_score = 0.0, -1.0
    for c in cs or PUBLISHED_CS:
        svm = SVC(kernel="linear", class_weight="balanced", C=c)
        score = float(cross_val_score(svm, features, correct, cv=cv, scoring="balanced_accuracy").mean())
        if score > best_score:
            best, best_score = c, score
    svm = SVC(kernel="linear", class_weight="balanced", C=best)
    out_of_fold = cross_val_predict(svm, features, correct, cv=cv, method="decision_function")
    svm.fit(features, correct)
    return SVMFit(svm.coef_[0], float(svm.intercept_[0]), best, best_score, out_of_fold)


def fit_scaled(
    features: Floats,
    correct: Mask,
    fold: NDArray[np.int64],
    cs: Sequence[float] | None = None,
    *,
    most: int = MOST_EXAMPLES,
) -> SVMFit:
    """Choose among multiples of the critical C of each training fold; refit at the same multiple of that of all data.

    Of the scores that are within two standard errors of the best, the one with the smallest C wins: the direction that
    is nearest to the difference of means. Taking the best itself follows chance, and larger values of C learn what
    tells failures apart *within* the failure mode before what the mode is.

    Args:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int.
        cs: Absolute values of C in place of the multiples.
        most: Fit on at most so many examples, of failures and successes as equal numbers as there are; scores and
            cross-fitted values are those of all.
    """
    used = _fixed_sample(correct, most)
    gram = features[used] @ features[used].T
    grid = tuple(cs or CRITICAL_MULTIPLES)
    names = np.unique(fold)
    values = np.empty((len(grid), len(correct)))
    scores = np.zeros(len(grid))
    for name in names:
        held, kept = np.flatnonzero(fold == name), np.flatnonzero(fold[used] != name)
        inside, right = gram[np.ix_(kept, kept)], correct[used][kept]
        unit = 1.0 if cs else critical_c(inside, right)
        for i, multiple in enumerate(grid):
            coefficients, bias = solve(inside, right, unit * multiple)
            values[i, held] = features[held] @ (coefficients @ features[used][kept]) + bias
            scores[i] += _balanced_accuracy(values[i, held] > 0, correct[held]) / len(names)
    error = score_stderr(values[scores.argmax()], correct)
    best = int(np.flatnonzero(scores >= scores.max() - TOLERANCE * error)[0])
    c = grid[best] * (1.0 if cs else critical_c(gram, correct[used]))
    coefficients, bias = solve(gram, correct[used], c)
    return SVMFit(coefficients @ features[used], bias, c, float(scores[best]), values[best])


def solve(gram: Floats, correct: Mask, c: float) -> tuple[Floats, float]:
    """Return coefficients a (n,) and bias b, such that the decision value of x is sum_i a_i K(x_i, x) + b.

    Up to the critical C the solution has a closed form: every multiplier is at its bound, so w is the class-weighted
    difference of means, and b any value of an interval, of which the middle is taken.
    """
    if c <= critical_c(gram, correct) * (1 + 1e-9):
        signs = balanced_signs(correct)
        f = gram @ signs
        return c * signs, -c * float(f[correct].max() + f[~correct].min()) / 2
    svm = SVC(kernel="precomputed", class_weight="balanced", C=c).fit(gram, correct)
    coefficients = np.zeros(len(correct))
    coefficients[svm.support_] = svm.dual_coef_[0]
    return coefficients, float(svm.intercept_[0])


def critical_c(gram: Floats, correct: Mask) -> float:
    """Return the largest C at which every multiplier is at its bound.

    With all multipliers at C w_i the decision values are C f + b, f = K (y w). They violate no margin as long as some b
    has C f + b <= 1 for the right and >= -1 for the wrong: up to C = 2 / (max f over right - min f over wrong).
    """
    f = gram @ balanced_signs(correct)
    return 2.0 / max(float(f[correct].max() - f[~correct].min()), 1e-12)


def balanced_signs(correct: Mask) -> Floats:
    """Return y * w along the last axis: the signs times the balanced class weights.

    Its product with a matrix of examples is n / 2 times (mean of the successes - mean of the failures).

    >>> balanced_signs(np.array([True, True, True, False]))
    array([ 0.66666667,  0.66666667,  0.66666667, -2.        ])
    """
    n = correct.shape[-1]
    successes = correct.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(correct, n / (2 * np.maximum(successes, 1)), -n / (2 * np.maximum(n - successes, 1))))


def score_stderr(out_of_fold: Floats, correct: Mask) -> float:
    """Return the binomial standard error of the balanced accuracy of cross-fitted decision values.

    Rates are shrunk by one hit and one miss, so that a perfect score on few examples is not called exact.
    """
    variance = 0.0
    for hits in (out_of_fold[correct] > 0, out_of_fold[~correct] <= 0):
        rate = (hits.sum() + 1) / (len(hits) + 2)
        variance += rate * (1 - rate) / len(hits)
    return 0.5 * float(np.sqrt(variance))


def _fixed_sample(correct: Mask, most: int) -> NDArray[np.int64]:
    """Rows to fit on, ascending: all, or ``most`` of them chosen by a hash, half of them failures where possible."""
    if len(correct) <= most:
        return np.arange(len(correct))
    order = np.argsort(stable_hash(np.arange(len(correct))), kind="stable")
    failures, successes = order[~correct[order]], order[correct[order]]
    half = most // 2
    failures = failures[: max(half, most - len(successes))]
    return np.sort(np.concatenate([failures, successes[: most - len(failures)]]))


def _balanced_accuracy(predicted: Mask, correct: Mask) -> float:
    return float(predicted[correct].mean() + (~predicted[~correct]).mean()) / 2
