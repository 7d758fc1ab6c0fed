"""Further failure directions of a class: where its failures lie at two ends, each end gets a direction of its own.

Two modes A and B make a first direction that is a blend of both. What is then left to tell them apart is a direction
along which failures lie at *both* ends: the difference of means vanishes there, so that an SVM on all failures sees
nothing. A leftover of one mode, from the error with which the first direction was estimated, shows at one end only.
Hence three steps, repeated:

1. Spread: the direction in which failures are spread most beyond successes, the leading eigenvector of the difference
   of their covariances, cross-fitted on folds of its own.
2. Two ends: in the plane of the former decision value and the spread, turn so that failures and successes have the same
   mean across the best single direction (the *index*) of that plane. Failures must then grow more frequent towards
   either end across it: one permutation test an end, within two strata of the index, and the larger of the two
   p-values.
3. The failures at the end which the former direction tells worse, against all successes, make an SVM: the new
   direction.

This departs from "project the former direction out, refit, permute within deciles of the former decision value", the
plain procedure, with which none of 180 planted second modes was found:

* Two strata of the index (twice as many examples as there are failures, where it says failure, and the rest), not
  deciles of the former value: the better the first direction tells *both* modes from the rest, the less is to be seen
  among examples of equal value. The turn in step 2 does what the deciles were there for.
* The search is made in what is left after projecting the former directions out; the SVM of step 3 in the whole space:
  its cosine with a planted second mode is 0.77 to 0.97 there, and 0.53 to 0.83 in what is left.

What the test takes for two modes is failures in excess at two ends. One mode whose failures vary far more along some
direction than the successes do can pass for two; so can one mode that exists in two varieties which successes lack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.directions.svm import SVMFit
from lightning_failures.stats.folds import permuted_outcomes, stratified_group_folds

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Fit = Callable[[NDArray[Any], Mask, Integers], SVMFit]
"""(features, correct, fold) -> the SVM."""

ADDITIONAL_LEVEL = 0.05
"""A direction with a larger p-value ends the search."""
MIN_FAILURES_PER_END = 10
"""Neither end may have fewer failures than this."""

_FOLDS = 5
_STEPS = 50  # of Lanczos' method
_OTHER_END = 0.35  # the share of the examples, at the other end, that the test of one end leaves out
_PER_FAILURE = 2.0  # examples in the stratum where the index says failure, for each failure
_UNUSUAL = 0.95  # beyond this quantile distances count no more


def additional_directions(
    first: SVMFit,
    features: NDArray[Any],
    correct: Mask,
    sources: NDArray[np.generic],
    fold: Integers,
    *,
    fit: Fit,
    most: int,
    permutations: int,
    seed: tuple[int, ...],
) -> list[tuple[SVMFit, float]]:
    """Seek directions beside the first one, until a test does not hold.

    A direction that is found parts the examples in two: those at its end, and those at the other, whose direction
    remains the former one. The next one is sought in the part with the most failures.

    Args:
        first: The first direction.
        features: (n, D), phi.
        correct: (n,) bool.
        sources: (n,) names of the groups that folds and permutations keep whole.
        fold: (n,) int, of the SVMs.
        fit: Fits one SVM.
        most: Find at most so many.
        permutations: Permutations of each test; 0: nothing is found.
        seed: The source of randomness.

    Returns:
        Each direction with its p-value. Its score is that of telling the failures at its end, which the data chose,
        from the successes: with few examples in many dimensions it is optimistic. Its ``out_of_fold`` has values for
        all.
    """
    found: list[tuple[SVMFit, float]] = []
    parts = [(first, np.arange(len(correct)))]
    while len(found) < most and permutations:
        failures = [np.count_nonzero(~correct[rows]) for _, rows in parts]
        former, rows = parts.pop(int(np.argmax(failures)))
        if min(max(failures), np.count_nonzero(correct[rows])) < 2 * MIN_FAILURES_PER_END:
            break
        spread_fold = stratified_group_folds(~correct[rows], sources[rows], folds=_FOLDS)
        if not _in_every_fold(~correct[rows], spread_fold):
            break
        left = _without(features[rows], first.weight, *(fitted.weight for fitted, _ in found))
        spread = _spread(left, correct[rows], spread_fold)
        values = [fitted.out_of_fold[rows] for fitted in (first, *(fitted for fitted, _ in found))]
        index, across = _rotate_to_discriminant(np.stack([*values, spread]), correct[rows])
        rng = np.random.default_rng([*seed, len(found) + 1])
        p = _p_value(index, across, correct[rows], sources[rows], permutations, rng)
        if p > ADDITIONAL_LEVEL:
            break
        end = _less_separated_end(across, former.out_of_fold[rows], correct[rows])
        kept = correct.copy()
        kept[rows[end]] = True
        if not _in_every_fold(~correct[kept], fold[kept]):
            break
        new = _with_values_for_all(fit(features[kept], correct[kept], fold[kept]), features, kept)
        found.append((new, p))
        parts += [(former, rows[~end]), (new, rows[end])]
    return found


def _spread(features: Floats, correct: Mask, fold: Integers) -> Floats:
    """Return (n,) cross-fitted positions along the direction in which failures are spread most beyond successes."""
    values = np.empty(len(correct))
    so_far = np.zeros(features.shape[1])
    for name in np.unique(fold):
        kept, held = fold != name, fold == name
        direction = _most_spread(features[kept], correct[kept])
        direction *= 1.0 if so_far @ direction >= 0 else -1.0  # an eigenvector has no sign
        so_far += direction
        position = features[held] @ direction
        values[held] = (position - position.mean()) / max(float(position.std()), 1e-12)
    return values


def _most_spread(features: Floats, correct: Mask) -> Floats:
    """Return the unit (D,) leading eigenvector of Cov(failures) - Cov(successes), off their difference of means.

    By Lanczos' method with full orthogonalisation: the covariances themselves, (D, D), are never made.
    """
    wrong, right = features[~correct], features[correct]
    between = right.mean(axis=0) - wrong.mean(axis=0)
    wrong = _without(wrong - wrong.mean(axis=0), between) / np.sqrt(len(wrong))
    right = _without(right - right.mean(axis=0), between) / np.sqrt(len(right))
    basis = np.zeros((min(_STEPS, features.shape[1]), features.shape[1]))
    images = np.zeros_like(basis)
    step = np.asarray(np.random.default_rng(0).normal(size=features.shape[1]))
    for i in range(len(basis)):
        for _ in range(2):  # once is not enough against rounding
            step = step - (basis[:i] @ step) @ basis[:i]
        if np.linalg.norm(step) < 1e-9:
            break
        basis[i] = step / np.linalg.norm(step)
        images[i] = (wrong @ basis[i]) @ wrong - (right @ basis[i]) @ right
        step = images[i]
    vectors = np.linalg.eigh(basis @ images.T)[1]
    return np.asarray(vectors[:, -1] @ basis)


def _rotate_to_discriminant(values: Floats, correct: Mask) -> tuple[Floats, Floats]:
    """Turn the space of some values, (k, n): along its best single direction, and the last value across it.

    Returns:
        (n,) Fisher's discriminant, and (n,) the last value less what goes with it: failures and successes have the same
        mean there.
    """
    gap = values[:, correct].mean(axis=1) - values[:, ~correct].mean(axis=1)
    within = np.cov(values[:, correct]) + np.cov(values[:, ~correct])
    along = np.linalg.pinv(within) @ gap
    index = along @ values
    return index, values[-1] - gap[-1] / max(float(along @ gap), 1e-12) * index


def _p_value(
    index: Floats,
    across: Floats,
    correct: Mask,
    sources: NDArray[np.generic],
    permutations: int,
    rng: np.random.Generator,
) -> float:
    """Return the larger p-value of two tests: failures become more frequent towards this end, and towards the other.

    The test of one end leaves out the examples at the other. Its statistic is the sum of the failures' positions;
    correctness is permuted within two strata: the examples with the lowest index, twice as many as there are failures,
    and the rest.
    """
    flagged = min(1.0, _PER_FAILURE * float((~correct).mean()))
    of_index = (index <= np.quantile(index, flagged)).astype(np.int64)
    p_values = []
    for towards in (across, -across):
        inside = towards >= np.quantile(towards, _OTHER_END)
        position = np.minimum(towards[inside], np.quantile(towards[inside], _UNUSUAL))
        failed, stratum = ~correct[inside], of_index[inside]
        for name in np.unique(stratum):
            position[stratum == name] -= position[stratum == name].mean()
        observed = position[failed].sum() - 1e-9 * np.abs(position).sum()
        blocks = permuted_outcomes(failed, sources[inside], permutations, rng, strata=stratum)
        extreme = sum(int((outcomes @ position >= observed).sum()) for outcomes in blocks)
        p_values.append((1 + extreme) / (1 + permutations))
    return max(p_values)


def _less_separated_end(across: Floats, former: Floats, correct: Mask) -> Mask:
    """Return (n,) bool: the end whose failures have the higher former decision values, so are told worse by it."""
    upper = across > np.median(across)
    return upper if former[upper & ~correct].mean() > former[~upper & ~correct].mean() else ~upper


def _in_every_fold(failed: Mask, fold: Integers) -> bool:
    return all(failed[fold == name].any() and not failed[fold == name].all() for name in np.unique(fold))


def _with_values_for_all(fitted: SVMFit, features: NDArray[Any], kept: Mask) -> SVMFit:
    """Give the examples that were left out the decision value of the SVM, which has not seen them."""
    values = features @ fitted.weight + fitted.bias
    values[kept] = fitted.out_of_fold
    return dataclasses.replace(fitted, out_of_fold=values)


def _without(features: NDArray[Any], *directions: NDArray[Any]) -> Floats:
    """Project directions out."""
    basis, _ = np.linalg.qr(np.stack(directions, axis=1).astype(np.float64))
    return np.asarray(features - (features @ basis) @ basis.T)
