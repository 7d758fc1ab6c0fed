"""Confusions: which classes are mistaken for which, and whether a failure direction explains it.

Without predicted classes, or with one wrong answer only (binary and multilabel tasks), there is nothing to report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import members_of
from lightning_failures.data.partition import Partition
from lightning_failures.data.report import (
    ClassReport,
    ConfusionReport,
    ConfusionSplitReport,
    FlaggedConfusionReport,
    MistakenReport,
)
from lightning_failures.directions.effects import CLEAR
from lightning_failures.directions.result import FailureDirections
from lightning_failures.stats.folds import permuted_outcomes
from lightning_failures.stats.intervals import benjamini_hochberg, difference_interval, share_intervals

MOST_PAIRS = 20
"""Maximum number of pairs of label and prediction in a report."""

MOST_MISTAKEN = 5
"""Maximum number of classes that a class is said to be mistaken for."""

MIN_FAILURES = 5
"""Minimum number of flagged and of other failures to compare what they are mistaken for."""

MIN_SPLIT_FAILURES, MIN_SPLIT_SHARE = 10, 0.2
"""Minimum number, and minimum share, of the failures with one prediction to be a part of a split."""

_PERMUTATIONS, _MORE_PERMUTATIONS = 999, 9999
_PROMISING = 0.01  # p-value from which more permutations are made, to be significant among many classes
_MOST_ANSWERS = 10  # rarer predictions are pooled in the test
_ROUNDING = 1e-6


def add_confusions(
    classes: tuple[ClassReport, ...],
    grades: Grades,
    directions: FailureDirections | None,
    partition: Partition,
    seed: int,
) -> tuple[tuple[ClassReport, ...], tuple[ConfusionReport, ...]]:
    """Add what each class is mistaken for to its report, and return the most frequent pairs of all classes. Collective.

    What the flagged failures of a class with a pattern are mistaken for is added only where it differs from the other
    failures, after Benjamini-Hochberg over these classes. There the failures are split by their predictions, too.
    """
    if grades.predictions is None or not has_several_wrong_answers(grades):
        return classes, ()
    predictions = as_array(grades.predictions)
    values = None if directions is None else as_array(directions.out_of_fold)
    members = members_of(grades)
    confused = [one.rows[predictions[one.rows] != k] for k, one in enumerate(members)]

    def of_class(k: int) -> FlaggedConfusionReport | None:
        rows = confused[k]
        if values is None or not classes[k].pattern:
            return None
        rows = rows[~np.isnan(values[rows])]
        sources = None if grades.groups is None else as_array(grades.groups)[rows]
        flagged = values[rows] < 0
        return flagged_confusion(predictions[rows], flagged, grades.class_names, seed=seed + k, sources=sources)

    found = partition.merge_results(lambda: {k: of_class(k) for k in range(len(classes)) if partition.owns(k)})
    tested = [found[k] for k in range(len(classes))]
    significant = benjamini_hochberg([np.nan if one is None else one.p_value for one in tested])

    def split_of(k: int) -> tuple[ConfusionSplitReport, ...]:
        if values is None or not significant[k]:
            return ()
        known = members[k].rows[~np.isnan(values[members[k].rows])]
        return split_by_confusion(
            predictions[known],
            predictions[known] != k,
            values[known] < 0,
            grades.class_names,
            sources=None if grades.groups is None else as_array(grades.groups)[known],
        )

    reports = [
        replace(
            entry,
            mistaken_for=mistaken_for(predictions[rows], grades.class_names),
            flagged_mistaken_for=of_flagged if explains else None,
            confusion_split=split_of(k),
        )
        for k, (entry, rows, of_flagged, explains) in enumerate(
            zip(classes, confused, tested, significant.tolist(), strict=True)
        )
    ]
    return tuple(reports), confusion_pairs(grades)


def confusion_pairs(grades: Grades, limit: int = MOST_PAIRS) -> tuple[ConfusionReport, ...]:
    """Return the most frequent pairs of a label and another prediction.

    >>> import torch
    >>> labels, predictions = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 2, 1])
    >>> grades = Grades(torch.arange(4), labels, predictions, None, ("cat", "dog", "owl"))
    >>> [(pair.label, pair.prediction, pair.count, round(pair.share, 2)) for pair in confusion_pairs(grades)]
    [('cat', 'dog', 2, 0.67), ('cat', 'owl', 1, 0.33)]
    """
    if grades.predictions is None:
        return ()
    labels, predictions = as_array(grades.labels), as_array(grades.predictions)
    wrong = labels != predictions
    size = len(grades.class_names)
    failures = np.bincount(labels[wrong], minlength=size)
    pairs, counts = np.unique(labels[wrong] * size + predictions[wrong], return_counts=True)
    return tuple(
        ConfusionReport(
            label=grades.class_names[pairs[i] // size],
            prediction=grades.class_names[pairs[i] % size],
            count=int(counts[i]),
            share=float(counts[i] / failures[pairs[i] // size]),
        )
        for i in np.argsort(-counts, kind="stable")[:limit]
    )


def mistaken_for(
    predictions: IntArray, class_names: Sequence[str], limit: int = MOST_MISTAKEN
) -> tuple[MistakenReport, ...]:
    """Return the classes that the failures of a class are most often mistaken for.

    Args:
        predictions: (n,) the predictions of the failures.
        class_names: K names.
        limit: Maximum number of classes.
    """
    answers, counts = np.unique(predictions, return_counts=True)
    return tuple(
        MistakenReport(class_names[answers[i]], int(counts[i]), float(counts[i] / len(predictions)))
        for i in np.argsort(-counts, kind="stable")[:limit]
    )


def flagged_confusion(
    predictions: IntArray,
    flagged: BoolArray,
    class_names: Sequence[str],
    *,
    seed: int,
    sources: NDArray[np.generic] | None = None,
) -> FlaggedConfusionReport | None:
    """Compare what the flagged failures of a class are mistaken for with the other failures.

    The p-value is that of the chi-square statistic of the table of flags and predictions, when flags are permuted
    between sources: 999 times, and 9,999 times if it is at most 0.01 then.

    Args:
        predictions: (n,) the predictions of the failures.
        flagged: (n,) bool.
        class_names: K names.
        seed: Seed of the permutations.
        sources: (n,) source of each failure. None: every failure is its own source.

    Returns:
        The class whose share among the flagged failures exceeds that among the others most; None if there are fewer
        than 5 flagged or other failures, or only one prediction.
    """
    n_flagged = int(flagged.sum())
    answers, answer = np.unique(predictions, return_inverse=True)
    if min(n_flagged, len(flagged) - n_flagged) < MIN_FAILURES or len(answers) < 2:
        return None
    counts = np.bincount(answer)
    of_flagged = np.bincount(answer[flagged], minlength=len(answers))
    shares, shares_of_others = of_flagged / n_flagged, (counts - of_flagged) / (len(flagged) - n_flagged)
    most = int(np.argmax(shares - shares_of_others))
    return FlaggedConfusionReport(
        class_name=class_names[answers[most]],
        count=int(of_flagged[most]),
        share=float(shares[most]),
        share_of_others=float(shares_of_others[most]),
        p_value=_permutation_p_value(answer, flagged, np.arange(len(flagged)) if sources is None else sources, seed),
    )


def split_by_confusion(
    predictions: IntArray,
    failed: BoolArray,
    flagged: BoolArray,
    class_names: Sequence[str],
    *,
    sources: NDArray[np.generic] | None = None,
) -> tuple[ConfusionSplitReport, ...]:
    """Split the failures of a class by what they are mistaken for, and say which parts follow its pattern.

    A part follows the pattern if clearly more of it are flagged than of the successes, by the interval of the
    difference: the direction then separates it from them.

    Args:
        predictions: (n,) the predictions of the examples.
        failed: (n,) bool.
        flagged: (n,) bool, by out-of-fold values.
        class_names: K names.
        sources: (n,) source of each example. None: every example is its own source.

    Returns:
        The parts with at least 10 failures and a fifth of all failures, the largest first; empty if there is only one.
    """
    answers, counts = np.unique(predictions[failed], return_counts=True)
    frequent = (counts >= MIN_SPLIT_FAILURES) & (counts >= MIN_SPLIT_SHARE * failed.sum())
    if np.count_nonzero(frequent) < 2 or failed.all():
        return ()
    of_correct, ends_of_correct = _flagged_share(flagged, ~failed, sources)
    parts = []
    for i in np.argsort(-counts, kind="stable")[: np.count_nonzero(frequent)]:
        share, ends = _flagged_share(flagged, failed & (predictions == answers[i]), sources)
        least_excess = difference_interval(share, ends, of_correct, ends_of_correct)[0]
        parts.append(
            ConfusionSplitReport(
                class_name=class_names[answers[i]],
                count=int(counts[i]),
                share=float(counts[i] / failed.sum()),
                flagged_share=share,
                flagged_interval=ends,
                flagged_share_of_correct=of_correct,
                pattern=least_excess >= CLEAR,
            )
        )
    return tuple(parts)


def _flagged_share(
    flagged: BoolArray, part: BoolArray, sources: NDArray[np.generic] | None
) -> tuple[float, tuple[float, float]]:
    """Return the flagged share of a part (n,) bool of the examples, and its interval."""
    source = None if sources is None else np.unique(sources[part], return_inverse=True)[1]
    return float(flagged[part].mean()), share_intervals(flagged[part].astype(np.int64), 2, source)[1]


def has_several_wrong_answers(grades: Grades) -> bool:
    """Return whether a failure may have more than one prediction: not in binary and multilabel tasks."""
    labels, predictions, names = as_array(grades.labels), as_array(grades.predictions), grades.class_names
    if len(names) <= 2:
        return False
    if len(names) % 2 or (labels // 2 != predictions // 2).any():
        return True
    # pairs of classes: conditions of a multilabel task, whose examples have several rows or whose names say so
    named = all(absent == f"no {present}" for absent, present in zip(names[::2], names[1::2], strict=True))
    ids = as_array(grades.ids)
    return not named and len(np.unique(ids)) == len(ids)


def _permutation_p_value(answer: IntArray, flagged: BoolArray, sources: NDArray[np.generic], seed: int) -> float:
    """Return the p-value of the chi-square statistic over permutations of the flags between whole sources."""
    # rare answers are one, because a statistic of many sparse cells has no power
    frequent = np.argsort(-np.bincount(answer), kind="stable")[:_MOST_ANSWERS]
    columns = [answer == one for one in frequent]
    rest = ~np.isin(answer, frequent)
    indicators = np.stack([*columns, rest] if rest.any() else columns, axis=1).astype(np.float32)
    totals, n = indicators.sum(axis=0), len(answer)

    def statistic(flags: BoolArray) -> NDArray[np.float64]:
        observed = flags.astype(np.float32) @ indicators
        size = observed.sum(axis=1, keepdims=True)
        deviation = (observed - size * totals / n) ** 2 / totals
        both = np.maximum(size * (n - size), 1)  # stretched sources may lose all flags
        return np.asarray((deviation.sum(axis=1, keepdims=True) * n * n / both)[:, 0], dtype=np.float64)

    least = float(statistic(flagged[None])[0]) * (1 - _ROUNDING)
    rng = np.random.default_rng(seed)
    hits = done = 0
    for permutations in (_PERMUTATIONS, _MORE_PERMUTATIONS):
        if done and (1 + hits) / (1 + done) > _PROMISING:
            break
        for flags in permuted_outcomes(flagged, sources, permutations - done, rng):
            hits += int((statistic(flags) >= least).sum())
        done = permutations
    return (1 + hits) / (1 + done)
