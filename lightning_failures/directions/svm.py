"""The linear SVM of one class, and the choice of its C.

L1-hinge loss, free bias, balanced class weights: minimise |w|^2 / 2 + C sum_i w_i max(0, 1 - y_i (w . phi_i + b)), with
y = +1 for a success and -1 for a failure. The Gram matrix is computed once a class, on any device, and serves all
values of C and all folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.svm import SVC

from lightning_failures.core.arrays import as_array, on_device
from lightning_failures.core.budget import MAX_GRAM_EXAMPLES
from lightning_failures.core.hashing import stable_hash

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

PUBLISHED_CS = tuple(10.0**e for e in range(-6, 1))
CRITICAL_MULTIPLES = (1.0, 3.0, 10.0, 30.0, 100.0)
TOLERANCE = 2.0
"""Scores no further apart than this many standard errors are not told apart: the smallest C among them wins."""

_VIOLATION = 1e-5  # of the optimality conditions, where margins are 1; scikit-learn's default is 1e-3


@dataclass(frozen=True)
class SVMFit:
    """The SVM of one class at the C that did best.

    Attributes:
        weight: (D,), w.
        bias: b.
        c: The C.
        score: Mean balanced accuracy over the folds.
        stderr: Its binomial standard error.
        out_of_fold: (n,) decision values, each from the fold that did not see the example.
    """

    weight: Floats
    bias: float
    c: float
    score: float
    stderr: float
    out_of_fold: Floats


def fit_published(
    features: NDArray[Any], correct: Mask, fold: NDArray[np.int64], cs: Sequence[float] | None = None
) -> SVMFit:
    """Follow the published procedure to the last bit: grid of C, 2 folds each, first best, refit on all.

    The same as scikit-learn's ``cross_val_score(SVC(kernel="linear", class_weight="balanced", C=c))`` and a refit, and
    its own solver; only the scalar products, which depend neither on C nor on the fold, are computed once.

    Args:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int.
        cs: The grid; default 1e-6 ... 1 by decades.
    """
    from lightning_failures.stats.kernels.products import scalar_products

    x = np.ascontiguousarray(features, dtype=np.float64)
    gram = np.empty((len(x), len(x)))
    scalar_products(x, gram)
    grid = tuple(cs or PUBLISHED_CS)
    values = np.empty((len(grid), len(correct)))
    scores = np.zeros(len(grid))
    with config_context(assume_finite=True, skip_parameter_validation=True):  # 15 fits of a few milliseconds each
        for kept, held in _splits(fold):
            inside, across = _block(gram, kept, kept), _block(gram, held, kept)
            for i, c in enumerate(grid):
                svm = SVC(kernel="precomputed", class_weight="balanced", C=c).fit(inside, correct[kept])
                values[i, held] = svm.decision_function(across)
            scores += _balanced_accuracy(values[:, held] >= 0, correct[held])
        scores /= len(np.unique(fold))
        best = int(scores.argmax())
        svm = SVC(kernel="precomputed", class_weight="balanced", C=grid[best]).fit(gram, correct)
    weight = (svm.dual_coef_ @ x[svm.support_])[0]
    stderr = score_stderr(values[best], correct)
    return SVMFit(weight, float(svm.intercept_[0]), grid[best], float(scores[best]), stderr, values[best])


def fit_scaled(
    features: NDArray[Any],
    correct: Mask,
    fold: NDArray[np.int64],
    cs: Sequence[float] | None = None,
    *,
    gram: NDArray[Any] | None = None,
    most: int = MAX_GRAM_EXAMPLES,
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
        gram: What :func:`centred_gram` gives, if it is at hand.
        most: Fit on at most so many examples, of failures and successes as equal numbers as there are; scores and
            cross-fitted values are those of all.
    """
    used = _fixed_sample(correct, most)
    everything = len(used) == len(correct)
    x, right, part = (features, correct, fold) if everything else (features[used], correct[used], fold[used])
    centre = x.mean(axis=0)
    if gram is None or not everything:
        gram = centred_gram(x)
    grid = np.unique(cs or CRITICAL_MULTIPLES).astype(np.float64)  # ascending: each solution starts from the one before
    values = np.empty((len(grid), len(correct)))
    scores = np.zeros(len(grid))
    for kept, held in _splits(part):
        inside = _block(gram, kept, kept)
        coefficients, biases, _ = _solve_path(inside, right[kept], grid, relative=not cs)
        if everything:
            values[:, held] = coefficients @ _block(gram, kept, held) + biases[:, None]
        else:
            held = np.flatnonzero(fold == part[held[0]])
            values[:, held] = (coefficients @ x[kept]) @ (features[held] - centre).T + biases[:, None]
        scores += _balanced_accuracy(values[:, held] >= 0, correct[held])
    scores /= len(np.unique(part))
    error = score_stderr(values[scores.argmax()], correct)
    best = int(np.flatnonzero(scores >= scores.max() - TOLERANCE * error)[0])
    coefficients, biases, critical = _solve_path(gram, right, grid[best : best + 1], relative=not cs)
    c = float(grid[best]) * (1.0 if cs else critical)
    weight = coefficients[0] @ x
    bias, stderr = float(biases[0] - weight @ centre), score_stderr(values[best], correct)
    return SVMFit(weight, bias, c, float(scores[best]), stderr, values[best])


def centred_gram(features: NDArray[Any], device: str | torch.device = "cpu") -> NDArray[Any]:
    """Scalar products (n, n) of features (n, D) less their mean, multiplied on the device.

    With a free bias the SVM does not depend on where the origin lies, but rounding does: taking the mean off first
    keeps single precision exact enough where all examples of a class are alike.
    """
    x = on_device(features - features.mean(axis=0), device)
    return as_array(x @ x.T)


def solve(gram: NDArray[Any], correct: Mask, c: float) -> tuple[Floats, float]:
    """Return coefficients a (n,) and bias b, such that the decision value of x is sum_i a_i K(x_i, x) + b.

    Up to the critical C the solution has a closed form: every multiplier is at its bound, so w is the class-weighted
    difference of means, and b any value of an interval, of which the middle is taken.
    """
    coefficients, biases, _ = _solve_path(gram, correct, np.array([c]), relative=False)
    return coefficients[0], float(biases[0])


def critical_c(gram: NDArray[Any], correct: Mask) -> float:
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
    for hits in (out_of_fold[correct] >= 0, out_of_fold[~correct] < 0):
        rate = (hits.sum() + 1) / (len(hits) + 2)
        variance += rate * (1 - rate) / len(hits)
    return 0.5 * float(np.sqrt(variance))


def _solve_path(gram: NDArray[Any], correct: Mask, cs: Floats, *, relative: bool) -> tuple[Floats, Floats, float]:
    """Coefficients (M, n) and biases (M,) for ascending values of C, or multiples of the critical one; and that."""
    from lightning_failures.stats.kernels.smo import solve_path

    coefficients, biases = np.empty((len(cs), len(correct))), np.empty(len(cs))
    gram32 = np.ascontiguousarray(gram, dtype=np.float32)
    signs = balanced_signs(correct)
    critical, unsolved = solve_path(gram32, correct, signs, cs, relative, _VIOLATION, coefficients, biases)
    if unsolved:
        told = f"{unsolved} of {len(cs)} SVMs were not solved: their examples are too alike for single precision"
        warnings.warn(told, stacklevel=3)
    return coefficients, biases, critical


def _splits(fold: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(kept, held out) rows of every fold."""
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]


def _block(gram: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
    """A part of the matrix; rows that follow each other are sliced, which is much faster than picking them."""
    slices = [slice(i[0], i[-1] + 1) if len(i) == i[-1] - i[0] + 1 else i for i in (rows, columns)]
    if any(isinstance(i, slice) for i in slices):
        return np.ascontiguousarray(gram[slices[0]][:, slices[1]])
    return gram[np.ix_(rows, columns)]


def _fixed_sample(correct: Mask, most: int) -> NDArray[np.int64]:
    """Rows to fit on, ascending: all, or ``most`` of them chosen by a hash, half of them failures where possible."""
    if len(correct) <= most:
        return np.arange(len(correct))
    order = np.argsort(stable_hash(np.arange(len(correct))), kind="stable")
    failures, successes = order[~correct[order]], order[correct[order]]
    half = most // 2
    failures = failures[: max(half, most - len(successes))]
    return np.sort(np.concatenate([failures, successes[: most - len(failures)]]))


def _balanced_accuracy(predicted: Mask, correct: Mask) -> Floats:
    """(..., n), (n,) -> (...)."""
    return np.asarray((predicted[..., correct].mean(axis=-1) + (~predicted[..., ~correct]).mean(axis=-1)) / 2)
