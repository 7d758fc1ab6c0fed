"""What the report says of each class: its direction in numbers, the examples at its ends, whether the tree agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, defined
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL
from lightning_failures.data.members import ClassSubset, members_of
from lightning_failures.data.report import ClassReport
from lightning_failures.directions.result import FailureDirections
from lightning_failures.stats.agreement import cohen_kappa
from lightning_failures.stats.intervals import benjamini_hochberg
from lightning_failures.trees.fit import FailureTree

_UNSEEN = "none of its examples was looked at"


def class_reports(
    grades: Grades,
    directions: FailureDirections | None,
    trees: dict[tuple[str, str], FailureTree],
    sampled: NDArray[np.bool_],
    top: int,
) -> tuple[ClassReport, ...]:
    """Put together what was found in each class; captions come later.

    Args:
        grades: N rows.
        directions: Fitted on them; None without embeddings.
        trees: By grouping and class name.
        sampled: (N,) bool, the rows that were looked at.
        top: How many examples of each end are named.
    """
    ids, confidence = as_array(grades.ids), as_array(grades.confidence)
    patterns = (
        {}
        if directions is None
        else dict(zip(directions.classes.tolist(), benjamini_hochberg(directions.p_value).tolist(), strict=True))
    )
    reports = []
    for k, (members, seen) in enumerate(zip(members_of(grades), members_of(grades, sampled=sampled), strict=True)):
        tree = trees.get((LABEL.name, members.name))
        values: dict[str, Any] = {}
        if directions is not None and k in patterns:
            values = _of_direction(directions, k, seen, top) | {
                "pattern": patterns[k],
                "agreement": agreement(as_array(directions.out_of_fold)[seen.rows], seen.ids, tree),
            }
        elif directions is not None:
            values = {"skipped": directions.skipped.get(k, _UNSEEN if len(members.rows) else "no examples")}
        least = seen.rows[np.lexsort((seen.ids, confidence[seen.rows]))[:top]]
        rate = members.failed.mean() if len(members.rows) else None
        reports.append(
            ClassReport(
                name=members.name,
                examples=len(members.rows),
                accuracy=None if rate is None else float((~members.failed).mean()),
                aler=None if tree is None else defined(tree.aler),
                base_error_rate=None if rate is None else float(rate),
                looked_at=len(seen.rows),
                failures_looked_at=int(seen.failed.sum()),
                least_confident_ids=tuple(ids[least].tolist()),
                least_confident_values=tuple(confidence[least].tolist()),
                **values,
            )
        )
    return tuple(reports)


def agreement(values: NDArray[Any], ids: NDArray[np.int64], tree: FailureTree | None) -> float | None:
    """Return Cohen's kappa between being flagged and being in the most important leaf of the tree.

    Args:
        values: (n,) decision values of the examples of a class.
        ids: (n,) their ids.
        tree: That of the class's label group.

    Returns:
        At most 1, and about 0 where the two have nothing to do with each other; None where nothing is flagged, there is
        no tree with splits, or its most important leaf fails no more than the group.
    """
    flagged = values < 0
    if tree is None or len(tree.leaves) < 2 or not flagged.any():
        return None
    leaf = tree.leaves[0]
    if not leaf.error_rate > tree.base_error_rate:
        return None
    return cohen_kappa(flagged, np.isin(ids, leaf.ids.numpy()))


def _of_direction(directions: FailureDirections, k: int, members: ClassSubset, top: int) -> dict[str, Any]:
    """The numbers of the direction of class k, and the ends of its decision values."""
    row, scores = directions.row(k), as_array(directions.out_of_fold)[members.rows]
    order = np.lexsort((members.ids, scores))
    hardest, easiest = order[:top], order[::-1][:top]
    return {
        "cv_score": defined(directions.cv_score[row]),
        "cv_score_stderr": defined(directions.cv_score_stderr[row]),
        "p_value": defined(directions.p_value[row]),
        "c": float(directions.c[row]),
        "flagged": int((scores < 0).sum()),
        "hardest_ids": tuple(members.ids[hardest].tolist()),
        "hardest_values": tuple(scores[hardest].tolist()),
        "easiest_ids": tuple(members.ids[easiest].tolist()),
        "easiest_values": tuple(scores[easiest].tolist()),
    }
