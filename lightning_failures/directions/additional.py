"""Additional failure directions of a class, one for each of two ends at which its failures lie.

Two modes A and B give a first direction that is a blend of both. The axis that separates A from B has failures at
*both* ends: the difference of means vanishes along it, so an SVM on all failures cannot find it. The remainder of a
single mode, due to the estimation error of the first direction, shows at one end only. Hence three steps, repeated:

1. Spread: find the direction in which the variance of failures exceeds that of successes most, the leading eigenvector
   of the difference of their covariances, cross-fitted on its own folds.
2. Two ends: in the plane of the previous decision value and the spread, rotate such that failures and successes have
   the same mean across the best single direction (the *index*) of this plane. Failures must then become more frequent
   towards both ends of the axis across it: one permutation test per end, within two strata of the index, and the larger
   of the two p-values.
3. The new direction is the SVM that separates the failures at the end that the previous direction separates less from
   all successes.

This departs from the plain procedure "project the previous direction out, refit, permute within deciles of the previous
decision value", which found none of 180 planted second modes:

* Two strata of the index (twice as many examples as there are failures, where the index predicts failure, and the rest)
  replace the deciles of the previous value: the better the first direction separates *both* modes from the rest, the
  less variation is left among examples of equal value. The rotation in step 2 takes over the purpose of the deciles.
* The search takes place in the space without the previous directions, but the SVM of step 3 is fitted in the whole
  space: there its cosine with a planted second mode is 0.77 to 0.97, against 0.53 to 0.83 in the reduced space.

The test detects failures in excess at two ends. One mode whose failures vary far more along some direction than the
successes do can pass for two modes; so can one mode that exists in two varieties which successes lack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.svm import SVMFit
from lightning_failures.stats.folds import permuted_outcomes, stratified_group_folds

FitSVM = Callable[[NDArray[Any], BoolArray, IntArray], SVMFit]
"""Fits an SVM to (features, correct, fold)."""

ADDITIONAL_LEVEL = 0.05
"""A direction with a larger p-value ends the search."""
MIN_FAILURES_PER_END = 10
"""Minimum number of failures at either end."""

_FOLDS = 5
_LANCZOS_STEPS = 50
_OTHER_END = 0.35  # share of the examples, at the other end, that the test of one end leaves out
_FLAGGED_PER_FAILURE = 2.0  # examples in the stratum where the index predicts failure, per failure
_CLIP_QUANTILE = 0.95  # positions beyond this quantile are clipped to it


class FoundDirection(NamedTuple):
    """A fitted direction and the p-value of its test."""

    svm: SVMFit
    p_value: float


def additional_directions(
    first: SVMFit,
    features: NDArray[Any],
    correct: BoolArray,
    sources: NDArray[np.generic],
    fold: IntArray,
    *,
    fit: FitSVM,
    most: int,
    permutations: int,
    seed: tuple[int, ...],
) -> list[FoundDirection]:
    """Search for directions in addition to the first one, until a test fails.

    A new direction splits the examples into those at its end and those at the other end, which keep the previous
    direction. The next search takes place in the part with the most failures.

    Args:
        first: The first direction.
        features: (n, D), phi.
        correct: (n,) bool.
        sources: (n,) names of the groups that folds and permutations keep whole.
        fold: (n,) int, the folds of the SVMs.
        fit: Fits one SVM.
        most: Maximum number of additional directions.
        permutations: Permutations of each test; 0 finds no direction.
        seed: The source of randomness.

    Returns:
        The directions with their p-values. A score is that of separating the failures at one end from the successes;
        since the data selected this end, it is optimistic where examples are few and dimensions many. Each
        ``out_of_fold`` has values for all n examples.
    """
    found: list[FoundDirection] = []
    parts = [(first, np.arange(len(correct)))]
    while len(found) < most and permutations:
        # the part of the examples with the most failures, if it has enough for two ends
        failures = [np.count_nonzero(~correct[rows]) for _, rows in parts]
        previous, rows = parts.pop(int(np.argmax(failures)))
        if min(max(failures), np.count_nonzero(correct[rows])) < 2 * MIN_FAILURES_PER_END:
            break
        spread_fold = stratified_group_folds(~correct[rows], sources[rows], folds=_FOLDS)
        if not _in_every_fold(~correct[rows], spread_fold):
            break

        # steps 1 and 2: spread of the failures, and the test of its two ends
        fitted = [first, *(direction.svm for direction in found)]
        remainder = _project_out(features[rows], *(svm.weight for svm in fitted))
        spread = _spread(remainder, correct[rows], spread_fold)
        values = np.stack([*(svm.out_of_fold[rows] for svm in fitted), spread])
        index, across = _rotate_to_discriminant(values, correct[rows])
        rng = np.random.default_rng([*seed, len(found) + 1])
        p_value = _p_value(index, across, correct[rows], sources[rows], permutations, rng)
        if p_value > ADDITIONAL_LEVEL:
            break

        # step 3: failures at the end that is separated less, against all successes
        end = _less_separated_end(across, previous.out_of_fold[rows], correct[rows])
        kept = correct.copy()
        kept[rows[end]] = True
        if not _in_every_fold(~correct[kept], fold[kept]):
            break
        svm = fit(features[kept], correct[kept], fold[kept]).for_all(features, kept)
        found.append(FoundDirection(svm, p_value))
        parts += [(previous, rows[~end]), (svm, rows[end])]
    return found


def _spread(features: FloatArray, correct: BoolArray, fold: IntArray) -> FloatArray:
    """Return (n,) cross-fitted positions along the direction in which the spread of failures exceeds that of successes.

    Positions are standardized within each fold.
    """
    values = np.empty(len(correct))
    sum_of_directions = np.zeros(features.shape[1])
    for name in np.unique(fold):
        kept, held = fold != name, fold == name
        direction = _most_spread(features[kept], correct[kept])
        direction *= 1.0 if sum_of_directions @ direction >= 0 else -1.0  # the sign of an eigenvector is arbitrary
        sum_of_directions += direction
        position = features[held] @ direction
        values[held] = (position - position.mean()) / max(float(position.std()), 1e-12)
    return values


def _most_spread(features: FloatArray, correct: BoolArray) -> FloatArray:
    """Return the unit (D,) leading eigenvector of Cov(failures) - Cov(successes), orthogonal to their mean difference.

    Lanczos' method with full orthogonalization, which never forms the (D, D) covariances. It is written out here
    because ``scipy.sparse.linalg.eigsh``, which agrees to about 1e-11, returns other signs: these decide which end
    draws the first permutations, so the p-values of 229 of 250 simulated classes would change within their Monte Carlo
    error. ``eigsh`` also fails for D = 1 and where all examples are identical.
    """
    wrong, right = features[~correct], features[correct]
    between = right.mean(axis=0) - wrong.mean(axis=0)
    wrong = _project_out(wrong - wrong.mean(axis=0), between) / np.sqrt(len(wrong))
    right = _project_out(right - right.mean(axis=0), between) / np.sqrt(len(right))
    basis = np.zeros((min(_LANCZOS_STEPS, features.shape[1]), features.shape[1]))
    images = np.zeros_like(basis)
    step = np.asarray(np.random.default_rng(0).normal(size=features.shape[1]))
    for i in range(len(basis)):
        for _ in range(2):  # once is not accurate enough in floating point
            step = step - (basis[:i] @ step) @ basis[:i]
        if np.linalg.norm(step) < 1e-9:
            break
        basis[i] = step / np.linalg.norm(step)
        images[i] = (wrong @ basis[i]) @ wrong - (right @ basis[i]) @ right
        step = images[i]
    vectors = np.linalg.eigh(basis @ images.T)[1]
    return np.asarray(vectors[:, -1] @ basis)


def _rotate_to_discriminant(values: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Rotate the space of some values, (k, n), to its best single direction and the last value across it.

    Returns:
        (n,) Fisher's discriminant, and (n,) the last value without its component along the discriminant: failures and
        successes have the same mean there.
    """
    gap = values[:, correct].mean(axis=1) - values[:, ~correct].mean(axis=1)
    within = np.cov(values[:, correct]) + np.cov(values[:, ~correct])
    along = np.linalg.pinv(within) @ gap
    index = along @ values
    return index, values[-1] - gap[-1] / max(float(along @ gap), 1e-12) * index


def _p_value(
    index: FloatArray,
    across: FloatArray,
    correct: BoolArray,
    sources: NDArray[np.generic],
    permutations: int,
    rng: np.random.Generator,
) -> float:
    """Return the larger p-value of two tests: failures become more frequent towards one end, and towards the other.

    The test of one end leaves out the examples at the other end. Its statistic is the sum of the positions of the
    failures. Correctness is permuted within two strata: the examples with the lowest index, twice as many as there are
    failures, and the rest.
    """
    flagged = min(1.0, _FLAGGED_PER_FAILURE * float((~correct).mean()))
    stratum_of = (index <= np.quantile(index, flagged)).astype(np.int64)
    p_values = []
    for towards in (across, -across):
        inside = towards >= np.quantile(towards, _OTHER_END)
        position = np.minimum(towards[inside], np.quantile(towards[inside], _CLIP_QUANTILE))
        failed, stratum = ~correct[inside], stratum_of[inside]
        for name in np.unique(stratum):
            position[stratum == name] -= position[stratum == name].mean()
        # a permutation that equals the observed labels counts as extreme despite rounding
        observed = position[failed].sum() - 1e-9 * np.abs(position).sum()
        blocks = permuted_outcomes(failed, sources[inside], permutations, rng, strata=stratum)
        extreme = sum(int((outcomes @ position >= observed).sum()) for outcomes in blocks)
        p_values.append((1 + extreme) / (1 + permutations))
    return max(p_values)


def _less_separated_end(across: FloatArray, previous: FloatArray, correct: BoolArray) -> BoolArray:
    """Return (n,) bool, the end whose failures have the higher previous decision values: it separates them less."""
    upper = across > np.median(across)
    return upper if previous[upper & ~correct].mean() > previous[~upper & ~correct].mean() else ~upper


def _in_every_fold(failed: BoolArray, fold: IntArray) -> bool:
    """Return whether every fold has failures and successes."""
    return all(failed[fold == name].any() and not failed[fold == name].all() for name in np.unique(fold))


def _project_out(features: NDArray[Any], *directions: NDArray[Any]) -> FloatArray:
    """Return features (n, D) without their components along the directions, (D,) each."""
    basis, _ = np.linalg.qr(np.stack(directions, axis=1).astype(np.float64))
    return np.asarray(features - (features @ basis) @ basis.T)
