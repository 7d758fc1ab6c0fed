"""One failure direction that all classes share, for what fails alike in many classes: blur, a background, a camera.

Where classes have too few images for directions of their own, all classes together may still have enough. Every image
is compared with the other images of its class, phi minus the mean of the class, so that neither what distinguishes
classes nor their error rates matter:

* The direction is the difference of means of successes and failures within classes. A class with f failures and s
  successes has the weight f s / (f + s), which is 0 where all fail or none. No other weights estimate a common
  difference with less variance.
* Its test permutes correctness within each class, whole sources.
* Folds consist of whole classes: a decision value comes from a direction of *other* classes. So the score measures
  what is shared, and "holds in a class" is a finding on new data.
* Only the test says whether there is a pattern. Score and effect take the directions of the folds as given: without a
  pattern, where each fold is judged by the noise of the others and they by its own, their errors are up to sqrt(2)
  times as large as stated.

Sources may have images in several classes, as every image of a multilabel task does. Only those in one class take part,
so that sources stay independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_mask, as_rows, as_vector
from lightning_failures.core.budget import sampling_rank
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.effects import Effect, measure_effect_within_classes, rates_within_classes
from lightning_failures.directions.one_class import MIN_PER_OUTCOME
from lightning_failures.directions.result import rows_by_class
from lightning_failures.directions.standardize import reference_moments, standardize
from lightning_failures.stats.agreement import auc
from lightning_failures.stats.folds import join_copies, permuted_outcomes

FOLDS = 10
"""Maximum number of folds, each of whole classes."""

MIN_TO_TELL = 5
"""Minimum number of failures, and of successes, of a class to tell whether the direction holds in it."""

MOST_TESTED = 50_000
"""Size of the sample on which more examples are tested."""

_STREAM, _STREAM_OF_CLASSES = 2, 3  # of random numbers
_ROUNDING = 1e-5  # a permutation that equals the observed labels must count as extreme in single precision
_TINY = 1e-12

T = TypeVar("T")
Gather = Callable[[Callable[[], T]], list[T]]


@dataclass(frozen=True, eq=False)
class SharedDirection:
    """A direction along which the failures of many classes differ from the successes of the same class.

    The decision value of an example is w . (phi(x) - mean of phi over its class) + b: negative, that is flagged, where
    it predicts a failure.

    Attributes:
        weight: (D,) float32, w, of unit length.
        bias: b.
        mean: (D,) float32 that phi subtracts.
        std: (D,) float32 that phi divides by.
        p_value: p-value of the test that correctness is independent of the embedding within classes; NaN without
            permutations.
        cv_score: Balanced accuracy of the flags within classes, by ``out_of_fold``, in [0, 1].
        cv_score_stderr: Its standard error.
        effect: Error rates of flagged and unflagged examples within classes.
        out_of_fold: (N,) float32 decision values from other classes; NaN for examples that take no part.
        tested: (M,) int64, the classes with enough failures and successes to tell whether the direction holds.
        class_auc: (M,) AUC of the decision values for telling successes from failures of the class.
        class_p_value: (M,) one-sided p-values, not corrected for several classes.
        too_few: Number of classes with examples that take part, but too few to tell.
        permuted: (P, D) float32, directions of permuted correctness, on the scale of ``unscaled``.
        unscaled: (D,) float32, the direction before it was scaled to unit length, of the tested examples.
    """

    weight: NDArray[np.float32]
    bias: float
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    p_value: float
    cv_score: float
    cv_score_stderr: float
    effect: Effect
    out_of_fold: NDArray[np.float32]
    tested: IntArray
    class_auc: FloatArray
    class_p_value: FloatArray
    too_few: int
    permuted: NDArray[np.float32]
    unscaled: NDArray[np.float32]


def fit_shared_direction(
    embeddings: Any,
    labels: Any,
    correct: Any,
    *,
    ids: Any = None,
    groups: Any = None,
    reference: Any = None,
    held: Any = None,
    used: Any = None,
    permutations: int = 999,
    seed: int = 0,
    gather: Gather[Any] = lambda work: [work()],
) -> SharedDirection | str:
    """Fit one direction that separates successes and failures of the same class, over all classes.

    Embeddings are read one class at a time, twice. Several processes can share the fit: each holds the embeddings of
    some classes and knows the labels and the correctness of all.

    Args:
        embeddings: (N, D) float tensor or array; of ``held`` rows only if it is given.
        labels: (N,) int >= 0, the true class of each example.
        correct: (N,) bool, whether the classifier was right.
        ids: (N,) int, names of the examples, which make the order of the rows irrelevant. Default: the row number.
        groups: (N,) int, names of the sources. Default: every example is its own source. Examples with equal embeddings
            are one source.
        reference: (M, D) embeddings from which phi takes mean and standard deviation, or a pair of these, (D,) each.
            Default: ``embeddings``.
        held: (N,) bool, the rows whose embeddings this process holds, whole classes. Default: all.
        used: (N,) bool, the rows that take part, on any process. Default: all.
        permutations: Permutations of the test. 0: no test.
        seed: The only source of randomness.
        gather: Runs a function on every process and returns all results in rank order.

    Returns:
        The direction, or the reason why there is none.

    >>> rng = np.random.default_rng(0)
    >>> x, labels = rng.normal(size=(300, 4)), np.arange(300) % 60
    >>> shared = fit_shared_direction(x, labels, x[:, 2] + rng.normal(size=300) > 0)
    >>> int(np.abs(shared.weight).argmax()), shared.p_value
    (2, 0.001)
    """
    n = len(labels)
    y = as_vector(labels, "labels", n)
    failed = ~as_mask(correct, "correct", n)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = np.unique(names if groups is None else as_vector(groups, "groups", n), return_inverse=True)[1]
    mine = np.ones(n, dtype=np.bool_) if held is None else as_mask(held, "held", n)
    x = as_rows(embeddings, "embeddings")
    place = np.cumsum(mine) - 1
    if mine.all():
        sources = np.unique(join_copies(sources, x), return_inverse=True)[1]
    takes_part = np.ones(n, dtype=np.bool_) if used is None else as_mask(used, "used", n)
    rows = _independent_rows(np.flatnonzero(takes_part), y, names, sources)
    fold = _folds_of_classes(y[rows], failed[rows], seed)
    if isinstance(fold, str):
        return fold

    with one_thread():
        mean, std = _mean_and_std(reference, x, names)
        share = min(1.0, MOST_TESTED / len(rows))
        classes = [
            _ClassRows(label, rows[some], failed[rows[some]], sources[rows[some]], int(fold[some[0]]))
            for label, some in rows_by_class(y[rows])
        ]
        own = [one for one in classes if mine[one.rows[0]]]

        def centred(one: _ClassRows) -> NDArray[np.float32]:
            phi = standardize(x[place[one.rows]], mean, std)
            return np.asarray(phi - phi.mean(axis=0))

        # the direction of each fold, from the classes of the others
        parts = gather(lambda: _sums(own, centred, x.shape[1], permutations, share, seed))
        of_fold, permuted = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
        whole = of_fold.sum(axis=0)
        weights = _unit(whole - of_fold)
        if not np.linalg.norm(whole) > _TINY:
            return "all embeddings of a class are the same, or failures and successes are alike on average"

        # decision values, by directions of other classes
        positions = np.full(n, np.nan)
        for part in gather(lambda: [(one.rows, centred(one) @ weights[one.fold]) for one in own]):
            for some, of_class in part:
                positions[some] = of_class
    values = positions[rows]
    thresholds = [_best_threshold(values[fold != k], failed[rows][fold != k], y[rows][fold != k]) for k in range(FOLDS)]
    out_of_fold = np.full(n, np.nan, dtype=np.float32)
    out_of_fold[rows] = values - np.array(thresholds)[fold]
    return SharedDirection(
        weight=_unit(whole[None])[0],
        bias=-_best_threshold(values, failed[rows], y[rows]),
        mean=mean,
        std=std,
        p_value=_p_value(permuted),
        **_quality(out_of_fold[rows], failed[rows], y[rows], sources[rows]),
        out_of_fold=out_of_fold,
        **_hold_in_classes(positions, classes, permutations, seed),
        permuted=permuted[1:].astype(np.float32),
        unscaled=permuted[0].astype(np.float32),
    )


@dataclass(frozen=True)
class _ClassRows:
    """The examples of one class that take part, by id.

    Attributes:
        label: The class.
        rows: (n,) rows of the caller.
        failed: (n,) bool.
        sources: (n,) int.
        fold: The fold of the class.
    """

    label: int
    rows: IntArray
    failed: BoolArray
    sources: IntArray
    fold: int


def _independent_rows(rows: IntArray, labels: IntArray, names: NDArray[Any], sources: IntArray) -> IntArray:
    """Return the rows that take part, by id: of each source those of one class, of classes with at least two rows.

    A source belongs to the class with most of its rows, among equals to one drawn by a hash.
    """
    rows = rows[np.argsort(names[rows], kind="stable")]
    pairs, pair, count = np.unique(
        np.stack([sources[rows], labels[rows]], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    order = np.lexsort((stable_hash(pairs[:, 1], 1) ^ stable_hash(pairs[:, 0]), -count, pairs[:, 0]))
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = np.diff(pairs[order, 0]) > 0
    chosen = np.zeros(len(pairs), dtype=np.bool_)
    chosen[order[is_first]] = True
    rows = rows[chosen[pair.ravel()]]
    several = np.bincount(labels[rows], minlength=1) > 1
    return np.asarray(rows[several[labels[rows]]])


def _folds_of_classes(labels: IntArray, failed: BoolArray, seed: int) -> IntArray | str:
    """Return the fold of the class of each example (n,), or why the classes cannot fill two folds.

    Classes are dealt out by the weight f s / (f + s) that they have in the direction, the heaviest first.
    """
    size, failures = np.bincount(labels, minlength=1), np.bincount(labels, failed, minlength=1)
    weight = failures * (size - failures) / np.maximum(size, 1)
    telling = weight > 0
    if np.count_nonzero(telling) < 2:
        return "fewer than two classes have both failures and successes"
    counts = {"failures": failures[telling].sum(), "successes": (size - failures)[telling].sum()}
    for outcome, count in counts.items():
        if count < MIN_PER_OUTCOME:
            return f"{count:.0f} {outcome} in classes that have both outcomes; at least {MIN_PER_OUTCOME} are needed"
    order = np.lexsort((stable_hash(np.arange(len(size)), seed), -weight))
    fold_of_class = np.empty(len(size), dtype=np.int64)
    fold_of_class[order] = np.arange(len(size)) % min(FOLDS, int(np.count_nonzero(telling)))
    return np.asarray(fold_of_class[labels])


def _mean_and_std(
    reference: Any, x: NDArray[Any], names: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean and the standard deviation (D,) of phi."""
    if isinstance(reference, tuple):
        mean, std = reference
    else:
        moments = reference_moments(reference, x, names)
        mean, std = moments.mean, moments.std
    return np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)


def _sums(
    classes: list[_ClassRows],
    centred: Callable[[_ClassRows], NDArray[np.float32]],
    dim: int,
    permutations: int,
    share: float,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Return minus the sums of the centred failures of some classes.

    Args:
        classes: Some classes.
        centred: Returns phi minus its mean over the class.
        dim: D.
        permutations: Number P of permutations.
        share: Share of the examples to test on.
        seed: The source of randomness.

    Returns:
        (F, D), the sums of each fold, and (1 + P, D), those of the tested examples by the observed and the permuted
        labels.
    """
    of_fold, tested = np.zeros((FOLDS, dim)), np.zeros((1 + permutations, dim))
    for one in classes:
        if one.failed.all() or not one.failed.any():
            continue
        features = centred(one)
        of_fold[one.fold] -= one.failed.astype(np.float32) @ features
        if not permutations:
            continue
        failed, sources = one.failed, one.sources
        if share < 1:
            kept = sampling_rank(sources) < share
            failed, sources, features = failed[kept], sources[kept], features[kept]
            features = features - (features.mean(axis=0) if len(features) else 0)
        tested[0] -= failed.astype(np.float32) @ features
        rng = np.random.default_rng([seed, one.label, _STREAM])
        done = 1
        for block in permuted_outcomes(failed, sources, permutations, rng):
            tested[done : done + len(block)] -= block.astype(np.float32) @ features
            done += len(block)
    return of_fold, tested


def _unit(vectors: FloatArray) -> NDArray[np.float32]:
    """Return vectors (k, D) of unit length; those of length zero stay so."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _TINY), dtype=np.float32)


def _p_value(sums: FloatArray) -> float:
    """Return the share of the labellings whose direction is at least as long as the observed one, the first row."""
    if len(sums) < 2:
        return float("nan")
    lengths = np.einsum("pd,pd->p", sums, sums)
    return float((lengths >= lengths[0] * (1 - _ROUNDING)).mean())


def _best_threshold(values: FloatArray, failed: BoolArray, labels: IntArray) -> float:
    """Return the threshold below which most failures lie beyond those that the error rates of classes explain.

    At least a twentieth of the examples lie below it, and at most half.
    """
    if not len(values):
        return 0.0
    least, most = -(-len(values) // 20), max(len(values) // 2, 1)
    error_rate = (np.bincount(labels, failed) / np.maximum(np.bincount(labels), 1))[labels]
    order = np.argsort(values, kind="stable")
    gain = np.cumsum((failed - error_rate)[order])
    last = least - 1 + int(gain[least - 1 : most].argmax())
    return float(values[order[last : last + 2]].mean())  # in the middle between the last flagged one and the next


def _quality(values: NDArray[Any], failed: BoolArray, labels: IntArray, sources: IntArray) -> dict[str, Any]:
    """Return score and effect of decision values (n,), both within classes."""
    # recall of failures, and 1 - recall of successes
    rates = rates_within_classes(failed, values < 0, labels, sources)
    shrunk = [(one.rate * one.effective + 1) / (one.effective + 2) for one in rates]
    variance = sum(p * (1 - p) / one.effective for p, one in zip(shrunk, rates, strict=True))
    return {
        "cv_score": 0.5 + (rates[0].rate - rates[1].rate) / 2,
        "cv_score_stderr": 0.5 * float(np.sqrt(variance)),
        "effect": measure_effect_within_classes(values, failed, labels, sources),
    }


def _hold_in_classes(positions: FloatArray, classes: list[_ClassRows], permutations: int, seed: int) -> dict[str, Any]:
    """Test in each class with enough examples whether failures have lower values than successes.

    The p-value is that of the sum of ranks of the failures, by a normal approximation whose mean and standard deviation
    are those over permutations of whole sources: it is not limited by their number.
    """
    from scipy.stats import norm, rankdata  # type: ignore[import-untyped]  # slow to import

    enough = [one for one in classes if min(one.failed.sum(), (~one.failed).sum()) >= MIN_TO_TELL]
    p_values = np.full(len(enough), np.nan)
    for i, one in enumerate(enough if permutations else []):
        ranks = rankdata(positions[one.rows])
        rng = np.random.default_rng([seed, one.label, _STREAM_OF_CLASSES])
        blocks = permuted_outcomes(one.failed, one.sources, permutations, rng)
        centred = ranks - ranks.mean()  # stretched sources may change the number of failures
        sums = np.concatenate([block @ centred for block in blocks])
        spread = float(sums.std())
        p_values[i] = norm.cdf((one.failed @ centred - sums.mean()) / spread) if spread > 0 else 1.0
    return {
        "tested": np.array([one.label for one in enough], dtype=np.int64),
        "class_auc": np.array([auc(positions[one.rows], ~one.failed) for one in enough]),
        "class_p_value": p_values,
        "too_few": len(classes) - len(enough),
    }
