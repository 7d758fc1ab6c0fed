"""The report of each class: the numbers of its direction, extreme examples, and the agreement of both methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, defined
from lightning_failures.core.text import failure_notes, is_failed_fit
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL
from lightning_failures.data.members import ClassSubset, members_of
from lightning_failures.data.report import MAX_REVIEW, ClassReport
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.directions.effects import measure_effect
from lightning_failures.directions.result import FailureDirections
from lightning_failures.stats.agreement import cohen_kappa
from lightning_failures.stats.intervals import benjamini_hochberg, effective_examples
from lightning_failures.stats.shrinkage import shrunken_rates
from lightning_failures.trees.fit import FailureTree

_NOT_SAMPLED = "none of its examples was analysed"


def class_reports(
    grades: Grades,
    directions: FailureDirections | None,
    trees: dict[tuple[str, str], FailureTree],
    groups: Iterable[GroupReport],
    sampled: BoolArray,
    top: int,
) -> tuple[ClassReport, ...]:
    """Return the report of each class, without captions, null scores and enrichment.

    Args:
        grades: N rows.
        directions: Directions fitted on the sampled rows; None without embeddings.
        trees: Trees by grouping and class name.
        groups: Reports of the groups, which say whose trees hold on held-out examples.
        sampled: (N,) bool, the rows that directions and trees analysed.
        top: Number of hardest, easiest and least confident examples that a report lists.
    """
    ids, confidence = as_array(grades.ids), None if grades.confidence is None else as_array(grades.confidence)
    with_pattern = {(group.grouping, group.class_name) for group in groups if group.pattern}
    patterns: dict[int, bool] = {}
    if directions is not None:
        significant = benjamini_hochberg(directions.p_value)
        patterns = dict(zip(directions.classes.tolist(), significant.tolist(), strict=True))
    reports = []
    for k, (members, analysed) in enumerate(zip(members_of(grades), members_of(grades, sampled=sampled), strict=True)):
        tree = trees.get((LABEL.name, members.name))
        tree_with_pattern = tree if (LABEL.name, members.name) in with_pattern else None
        values: dict[str, Any] = {}
        if directions is not None and k in patterns:
            values = _direction_fields(directions, k, analysed, top) | {
                **_effect_fields(directions, k, analysed, pattern=patterns[k]),
                "pattern": patterns[k],
                "agreement": agreement(
                    as_array(directions.out_of_fold)[analysed.rows], analysed.ids, tree_with_pattern
                ),
            }
        elif directions is not None:
            values = {"skipped": directions.skipped.get(k, _NOT_SAMPLED if len(members.rows) else "no examples")}
            in_doubt = as_array(directions.in_doubt)[analysed.rows] & analysed.failed
            if in_doubt.any():  # perhaps the reason why too few failures are left
                values |= _doubt_fields(directions, analysed, in_doubt)
        if confidence is not None:
            least = analysed.rows[np.lexsort((analysed.ids, confidence[analysed.rows]))[:top]]
            values["least_confident_ids"] = tuple(ids[least].tolist())
            values["least_confident_values"] = tuple(confidence[least].tolist())
        error_rate = members.failed.mean() if len(members.rows) else None
        reports.append(
            ClassReport(
                name=members.name,
                examples=len(members.rows),
                accuracy=None if error_rate is None else float((~members.failed).mean()),
                aler=None if tree is None else defined(tree.aler),
                base_error_rate=None if error_rate is None else float(error_rate),
                looked_at=len(analysed.rows),
                failures_looked_at=int(analysed.failed.sum()),
                **values,
            )
        )
    return _with_shrunken_rates(_with_gain_shares(reports), members_of(grades))


def _with_gain_shares(classes: Sequence[ClassReport]) -> list[ClassReport]:
    """Add the gain of each class as a share of the analysed failures of all classes."""
    failures = max(sum(entry.failures_looked_at or 0 for entry in classes), 1)
    return [entry if entry.gain is None else replace(entry, gain_share=entry.gain / failures) for entry in classes]


def _with_shrunken_rates(classes: Sequence[ClassReport], members: Sequence[ClassSubset]) -> tuple[ClassReport, ...]:
    """Add the error rates shrunk towards the mean of all classes; a class without examples has none."""
    graded = [k for k, one in enumerate(members) if len(one.rows)]
    counts = np.array([_effective_counts(members[k]) for k in graded]).reshape(-1, 2)
    rates, intervals = shrunken_rates(*counts.T)
    found = dict(zip(graded, zip(rates.tolist(), intervals.tolist(), strict=True), strict=True))
    reports = []
    for k, entry in enumerate(classes):
        if k in found:
            rate, ends = found[k]
            entry = replace(entry, error_rate_shrunk=rate, error_rate_interval=tuple(ends))
        reports.append(entry)
    return tuple(reports)


def _effective_counts(members: ClassSubset) -> tuple[float, float]:
    """Return the failures and the examples of a class, as independent ones where examples share sources."""
    sources = None if members.sources is None else np.unique(members.sources, return_inverse=True)[1]
    examples = float(effective_examples(members.failed.astype(np.int64), 2, sources)[1])
    return float(members.failed.mean()) * examples, examples


def failed_fits(classes: Iterable[ClassReport], groups: Iterable[GroupReport]) -> tuple[str, ...]:
    """Return a sentence for each reason why the fits of classes and of groups failed."""
    reasons = [(entry.name, entry.skipped) for entry in classes if entry.skipped and is_failed_fit(entry.skipped)]
    notes = failure_notes("failure direction for class", reasons)
    failed = [group for group in groups if is_failed_fit(group.skipped)]
    for grouping in dict.fromkeys(group.grouping for group in failed):
        of_grouping = [(one.class_name, one.skipped or "") for one in failed if one.grouping == grouping]
        notes += failure_notes(f"failure tree for the {grouping}", of_grouping)
    return notes


def agreement(values: NDArray[Any], ids: IntArray, tree: FailureTree | None) -> float | None:
    """Return Cohen's kappa between being flagged and being in the most important leaf of the tree.

    Args:
        values: (n,) decision values of the examples of a class.
        ids: (n,) ids of these examples.
        tree: Tree of the label group of the class; None if there is none, or none with a pattern.

    Returns:
        At most 1, and about 0 if the two are independent. None if no example is flagged, there is no tree with splits,
        or the held-out error rate of its most important leaf is not above that of the group.
    """
    flagged = values < 0
    if tree is None or len(tree.leaves) < 2 or not flagged.any():
        return None
    leaf = tree.leaves[0]
    if leaf.heldout_error_rate is None or not leaf.heldout_error_rate > tree.base_error_rate:
        return None
    return cohen_kappa(flagged, np.isin(ids, leaf.ids.numpy()))


def _direction_fields(directions: FailureDirections, k: int, members: ClassSubset, top: int) -> dict[str, Any]:
    """Return the fields of a class report that describe the direction of class k and its extreme examples."""
    row = directions.row(k)
    values = as_array(directions.out_of_fold)[members.rows]
    order = np.lexsort((members.ids, values))  # ties by id
    hardest, easiest = order[:top], order[::-1][:top]
    return {
        "cv_score": defined(directions.cv_score[row]),
        "cv_score_stderr": defined(directions.cv_score_stderr[row]),
        "p_value": defined(directions.p_value[row]),
        "c": float(directions.c[row]),
        "flagged": int((values < 0).sum()),
        "flag_agreement": defined(directions.flag_agreement[row]),
        "hardest_ids": tuple(members.ids[hardest].tolist()),
        "hardest_values": tuple(values[hardest].tolist()),
        "easiest_ids": tuple(members.ids[easiest].tolist()),
        "easiest_values": tuple(values[easiest].tolist()),
    }


def _effect_fields(directions: FailureDirections, k: int, members: ClassSubset, *, pattern: bool) -> dict[str, Any]:
    """Return the fields of a class report that say how much a pattern matters, and which labels are in doubt."""
    row, rows = directions.row(k), members.rows
    low, high = directions.effect_interval[row].tolist()
    effect = measure_effect(as_array(directions.out_of_fold)[rows], members.failed, interval=(low, high))
    tested = not bool(directions.p_value[row].isnan())
    defined_effect = np.isfinite(effect.difference)
    return {
        "strength": None if not tested else effect.strength if pattern else "none",
        "effect": defined(effect.difference),
        "effect_interval": effect.interval if defined_effect else None,
        "flagged_error_rate": defined(effect.flagged_error_rate),
        "unflagged_error_rate": defined(effect.unflagged_error_rate),
        "failures_flagged": defined(effect.coverage),
        "gain": defined(effect.gain) if pattern else None,
        "explained": defined(directions.explained[row]),
        **_doubt_fields(directions, members, as_array(directions.doubted)[rows]),
    }


def _doubt_fields(directions: FailureDirections, members: ClassSubset, doubted: BoolArray) -> dict[str, Any]:
    """Return the fields of a class report that name the examples with doubtful labels, (n,) bool."""
    margins = as_array(directions.label_margin)[members.rows]
    most_doubtful = np.lexsort((members.ids, margins))
    return {
        "doubted": None if np.isnan(margins).all() else int(doubted.sum()),
        "doubted_ids": tuple(members.ids[most_doubtful][doubted[most_doubtful]][:MAX_REVIEW].tolist()),
    }
