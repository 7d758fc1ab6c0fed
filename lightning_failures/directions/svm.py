"""The linear SVM of one class and the selection of its C.

The SVM has an L1 hinge loss, a free bias and balanced class weights. It minimises
|w|^2 / 2 + C sum_i w_i max(0, 1 - y_i (w . phi_i + b)) with y = +1 for a success and -1 for a failure. The Gram matrix
is computed once per class, on any device, and serves all values of C and all folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.svm import SVC

from lightning_failures.core.arrays import as_array, on_device
from lightning_failures.core.budget import MAX_GRAM_EXAMPLES
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.precision import full_precision
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.criterion import CRITERION

PUBLISHED_CS = tuple(10.0**e for e in range(-6, 1))
"""The grid of the published code: absolute values of C."""
FIXABLE_MULTIPLE = 3.0
"""C in units of the critical C where failures whose label is in doubt leave the fit: it finds subpopulations best.

Both multiples were chosen by ``benchmarks/fixable.py``. One multiple for all classes is better than one selected for
each: scores of single classes hardly distinguish values of C.
"""
WHOLE_MULTIPLE = 30.0
"""C in units of the critical C where no example leaves the fit: it distinguishes failures from successes best."""
SCORE_TOLERANCE = 2.0
"""Scores within this many standard errors of the best count as equal; the smallest C among them wins."""

_MAX_VIOLATION = 1e-5  # of the optimality conditions, where margins are 1; scikit-learn's default is 1e-3


@dataclass(frozen=True)
class SVMFit:
    """The SVM of one class at the selected C.

    Attributes:
        weight: (D,), w.
        bias: b.
        c: The selected C.
        score: Mean of the criterion (balanced accuracy) over the folds.
        stderr: Standard error of the score.
        out_of_fold: (n,) decision values, each from the fit that did not see the example.
    """

    weight: FloatArray
    bias: float
    c: float
    score: float
    stderr: float
    out_of_fold: FloatArray

    def of_examples(self, kept: BoolArray) -> SVMFit:
        """Return the fit with the out-of-fold values of some examples only, those of ``kept`` (n,) bool."""
        return replace(self, out_of_fold=self.out_of_fold[kept])

    def for_all(self, features: NDArray[Any], kept: BoolArray) -> SVMFit:
        """Return the fit with values for all examples: those outside ``kept`` were not seen by it."""
        values = features @ self.weight + self.bias
        values[kept] = self.out_of_fold
        return replace(self, out_of_fold=values)


def fit_published(
    features: NDArray[Any], correct: BoolArray, fold: IntArray, cs: Sequence[float] | None = None
) -> SVMFit:
    """Fit by the published procedure, bit for bit: grid over C, cross-validation, first best C, refit on all examples.

    The result equals scikit-learn's ``cross_val_score(SVC(kernel="linear", class_weight="balanced", C=c))`` followed by
    a refit, with scikit-learn's own solver. Only the scalar products are computed once, since they depend neither on C
    nor on the fold.

    Args:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int, the fold of each example.
        cs: The grid; default :data:`PUBLISHED_CS`.
    """
    from lightning_failures.stats.kernels.products import scalar_products

    x = np.ascontiguousarray(features, dtype=np.float64)
    gram = np.empty((len(x), len(x)))
    scalar_products(x, gram)
    grid = tuple(cs or PUBLISHED_CS)
    values = np.empty((len(grid), len(correct)))
    scores = np.zeros(len(grid))
    # 15 fits take a few milliseconds each; scikit-learn's checks would dominate them
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for kept, held in _splits(fold):
            inside, across = _block(gram, kept, kept), _block(gram, held, kept)
            for i, c in enumerate(grid):
                svm = SVC(kernel="precomputed", class_weight="balanced", C=c).fit(inside, correct[kept])
                values[i, held] = svm.decision_function(across)
            scores += CRITERION.score(values[:, held], correct[held])
        scores /= len(np.unique(fold))
        best = int(scores.argmax())
        svm = SVC(kernel="precomputed", class_weight="balanced", C=grid[best]).fit(gram, correct)
    weight = (svm.dual_coef_ @ x[svm.support_])[0]
    stderr = CRITERION.stderr(values[best], correct)
    return SVMFit(weight, float(svm.intercept_[0]), grid[best], float(scores[best]), stderr, values[best])


def fit_scaled(
    features: NDArray[Any],
    correct: BoolArray,
    fold: IntArray,
    cs: Sequence[float] | None = None,
    *,
    multiple: float = WHOLE_MULTIPLE,
    gram: NDArray[Any] | None = None,
    fitted: BoolArray | None = None,
    scored: BoolArray | None = None,
    most: int = MAX_GRAM_EXAMPLES,
) -> SVMFit:
    """Cross-validate and fit at a multiple of the critical C: that of each training fold, then that of all examples.

    Larger values of C learn differences *within* the failure mode too, smaller ones come nearer to the difference of
    means. Among values of ``cs`` whose scores lie within two standard errors of the best, the smallest wins: the best
    score itself is partly chance.

    Args:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int, the fold of each example.
        cs: Absolute values of C to select from, instead of the multiple.
        multiple: C in units of the critical C.
        gram: (n, n) result of :func:`centred_gram`, if it is already computed.
        fitted: (n,) bool, the examples to fit on; the others only get out-of-fold values. Default: all.
        scored: (n,) bool, the examples to score on. Default: all.
        most: Maximum number of examples to fit on, sampled with equal numbers of failures and successes as far as
            possible. Scores and out-of-fold values still cover all examples.
    """
    scored = np.ones(len(correct), dtype=np.bool_) if scored is None else scored
    sample = _Sample.of(features, correct, fold, gram=gram, fitted=fitted, most=most)
    # ascending, because each solution starts from the previous one
    grid = np.unique(cs or (multiple,)).astype(np.float64)
    values, scores = sample.cross_validate(grid, scored, relative=not cs)

    # select C and refit on all examples
    error = CRITERION.stderr(values[scores.argmax()][scored], correct[scored])
    best = int(np.flatnonzero(scores >= scores.max() - SCORE_TOLERANCE * error)[0])
    coefficients, biases, critical = _solve_path(
        _block(sample.gram, sample.place, sample.place),
        correct[sample.used],
        grid[best : best + 1],
        relative=not cs,
    )
    c = float(grid[best]) * (1.0 if cs else critical)
    weight = coefficients[0] @ features[sample.used]
    bias, stderr = float(biases[0] - weight @ sample.centre()), CRITERION.stderr(values[best][scored], correct[scored])
    return SVMFit(weight, bias, c, float(scores[best]), stderr, values[best])


def score_scaled(
    features: NDArray[Any],
    correct: BoolArray,
    fold: IntArray,
    *,
    multiple: float = WHOLE_MULTIPLE,
    gram: NDArray[Any] | None = None,
) -> float:
    """Return the score that :func:`fit_scaled` gives with one multiple, without its fit of all examples.

    Args:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int, the fold of each example.
        multiple: C in units of the critical C.
        gram: (n, n) result of :func:`centred_gram`, if it is already computed.
    """
    sample = _Sample.of(features, correct, fold, gram=gram)
    every = np.ones(len(correct), dtype=np.bool_)
    return float(sample.cross_validate(np.array([multiple]), every, relative=True)[1][0])


@dataclass(frozen=True)
class _Sample:
    """The examples of a fit, and those of them that it is fitted on.

    Attributes:
        features: (n, D), phi.
        correct: (n,) bool.
        fold: (n,) int, the fold of each example.
        used: (m,) the rows to fit on.
        gram: The Gram matrix: of all examples, or of those to fit on if there are too many.
        place: (m,) the place of the examples to fit on in the Gram matrix.
    """

    features: NDArray[Any]
    correct: BoolArray
    fold: IntArray
    used: IntArray
    gram: NDArray[Any]
    place: IntArray

    @classmethod
    def of(
        cls,
        features: NDArray[Any],
        correct: BoolArray,
        fold: IntArray,
        *,
        gram: NDArray[Any] | None = None,
        fitted: BoolArray | None = None,
        most: int = MAX_GRAM_EXAMPLES,
    ) -> _Sample:
        """Choose the examples to fit on, and compute the Gram matrix if it is not there or too large."""
        used = _fixed_sample(correct, most, fitted)
        of_all = len(correct) <= most
        if gram is None or not of_all:
            gram = centred_gram(features if of_all else features[used])
        return cls(features, correct, fold, used, gram, used if of_all else np.arange(len(used)))

    @property
    def of_all(self) -> bool:
        """Whether the Gram matrix is that of all examples."""
        return len(self.gram) == len(self.correct)

    def centre(self) -> NDArray[Any]:
        """Return the mean that the Gram matrix is centred by, (D,)."""
        return np.asarray((self.features if self.of_all else self.features[self.used]).mean(axis=0))

    def cross_validate(self, grid: FloatArray, scored: BoolArray, *, relative: bool) -> tuple[FloatArray, FloatArray]:
        """Predict each fold by the fit on the other folds.

        Args:
            grid: (M,) ascending values of C, or multiples of the critical C where ``relative``.
            scored: (n,) bool, the examples to score on.
            relative: Whether the grid is in units of the critical C.

        Returns:
            Values (M, n) and scores (M,).
        """
        right, part = self.correct[self.used], self.fold[self.used]
        values, scores = np.empty((len(grid), len(self.correct))), np.zeros(len(grid))
        folds = np.unique(self.fold)
        for kept, held in ((np.flatnonzero(part != k), np.flatnonzero(self.fold == k)) for k in folds):
            inside = _block(self.gram, self.place[kept], self.place[kept])
            coefficients, biases, _ = _solve_path(inside, right[kept], grid, relative=relative)
            if self.of_all:
                values[:, held] = coefficients @ _block(self.gram, self.place[kept], held) + biases[:, None]
            else:
                weights = coefficients @ self.features[self.used[kept]]
                values[:, held] = weights @ (self.features[held] - self.centre()).T + biases[:, None]
            judged = held[scored[held]]
            scores += CRITERION.score(values[:, judged], self.correct[judged])
        return values, scores / len(folds)


def centred_gram(features: NDArray[Any], device: str | torch.device = "cpu") -> NDArray[Any]:
    """Return the scalar products (n, n) of centred features (n, D), computed on the device.

    An SVM with a free bias does not depend on the origin, but rounding does: centring keeps single precision accurate
    enough where the examples of a class are nearly the same.
    """
    x = on_device(features - features.mean(axis=0), device)
    with full_precision(device):
        return as_array(x @ x.T)


def solve(gram: NDArray[Any], correct: BoolArray, c: float) -> tuple[FloatArray, float]:
    """Return coefficients a (n,) and bias b of the SVM: the decision value of x is sum_i a_i K(x_i, x) + b.

    Up to the critical C the solution has a closed form: every multiplier is at its bound, w is the class-weighted
    difference of means, and any b of an interval is optimal. The middle of the interval is returned.
    """
    coefficients, biases, _ = _solve_path(gram, correct, np.array([c]), relative=False)
    return coefficients[0], float(biases[0])


def balanced_signs(correct: BoolArray) -> FloatArray:
    """Return y * w along the last axis: the sign of each example times its balanced class weight.

    The product with a matrix of examples is n / 2 times (mean of the successes - mean of the failures).

    >>> balanced_signs(np.array([True, True, True, False]))
    array([ 0.66666667,  0.66666667,  0.66666667, -2.        ])
    """
    n = correct.shape[-1]
    successes = correct.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(correct, n / (2 * np.maximum(successes, 1)), -n / (2 * np.maximum(n - successes, 1))))


def _solve_path(
    gram: NDArray[Any], correct: BoolArray, cs: FloatArray, *, relative: bool
) -> tuple[FloatArray, FloatArray, float]:
    """Solve the SVM for M ascending values of C, or multiples of the critical C where ``relative``.

    Returns:
        Coefficients (M, n), biases (M,), and the critical C: the largest at which every multiplier is at its bound.
    """
    from lightning_failures.stats.kernels.smo import solve_path

    coefficients, biases = np.empty((len(cs), len(correct))), np.empty(len(cs))
    gram32 = np.ascontiguousarray(gram, dtype=np.float32)
    signs = balanced_signs(correct)
    critical, unsolved = solve_path(gram32, correct, signs, cs, relative, _MAX_VIOLATION, coefficients, biases)
    if unsolved:
        warnings.warn(
            f"{unsolved} of {len(cs)} SVMs did not converge: their examples are too similar for single precision",
            stacklevel=3,
        )
    return coefficients, biases, critical


def _splits(fold: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Return the rows outside and inside each fold."""
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]


def _block(gram: NDArray[Any], rows: IntArray, columns: IntArray) -> NDArray[Any]:
    """Return a block of the matrix; consecutive indices are sliced, which is much faster than indexing."""
    slices = [slice(i[0], i[-1] + 1) if len(i) == i[-1] - i[0] + 1 else i for i in (rows, columns)]
    if any(isinstance(i, slice) for i in slices):
        return np.ascontiguousarray(gram[slices[0]][:, slices[1]])
    return gram[np.ix_(rows, columns)]


def _fixed_sample(correct: BoolArray, most: int, fitted: BoolArray | None = None) -> IntArray:
    """Return the rows to fit on, ascending: all of ``fitted``, or ``most`` of them by a hash, half of them failures."""
    rows = np.arange(len(correct)) if fitted is None else np.flatnonzero(fitted)
    if len(rows) <= most:
        return rows
    order = rows[np.argsort(stable_hash(rows), kind="stable")]
    failures, successes = order[~correct[order]], order[correct[order]]
    half = most // 2
    failures = failures[: max(half, most - len(successes))]
    return np.sort(np.concatenate([failures, successes[: most - len(failures)]]))
