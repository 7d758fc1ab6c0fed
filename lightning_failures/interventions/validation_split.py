"""Parts of a validation set: one to find failures, one to report results, one to make decisions by.

A training that is steered by a validation set cannot be evaluated on it. So while interventions are on, directions and
trees are fitted on the *discovery* part, and the headline numbers are read on the *report* part. Numbers that decide
something (whether an intervention is undone, which checkpoint is kept) are read on a third part, the *decision* part.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.types import BoolArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.held_out import HeldOutSplit
from lightning_failures.data.joining import ExampleKeys, join_examples
from lightning_failures.directions.result import FailureDirections


class Part(IntEnum):
    """Part of the validation set that an example belongs to."""

    DISCOVERY = 0
    """Directions, captions and trees are fitted on it."""
    REPORT = 1
    """Headline numbers are read on it."""
    DECISION = 2
    """Checkpoints, schedulers and rollback decide by it."""
    SPENT = 3
    """The last layer is fitted to it."""


MIN_EXAMPLES = 10
"""Minimum number of examples in a part for a class to count as the worst."""

_SALT = 0x5EED
_DECISION_SALT = 0xDEC1DE
_SPENT_SALT = 0x59E47


def judge_split(grades: Grades, embeddings: Tensor | None, directions: FailureDirections | None) -> HeldOutSplit:
    """Compute the decision values of examples that the directions were not fitted to.

    Args:
        grades: n rows.
        embeddings: One row for each distinct id, ascending; None: all values are NaN.
        directions: Fitted on other examples; None: all values are NaN.
    """
    if embeddings is None or directions is None:
        return HeldOutSplit(grades, torch.full((len(grades),), float("nan")))
    _, place = np.unique(as_array(grades.ids), return_inverse=True)
    return HeldOutSplit(grades, directions.decision_values(embeddings[torch.from_numpy(place)], grades.labels))


def part_of(grades: Grades, *, seed: int = 0, decision: bool = False, spent: bool = False) -> Tensor:
    """Return the part of each example, (N,) int64 values of :class:`Part`, by a hash of its group or else of its id.

    Half of the examples are in the discovery part, half in the report part. With ``decision``, two fifths of the report
    part, a fifth of all examples, become the decision part; the discovery part stays the same. With ``spent``, half of
    the discovery part becomes the spent part. A group is never split, and is in the same part in every epoch and run.

    >>> rows = torch.arange(1000)
    >>> grades = Grades(rows, rows % 2, rows % 2, torch.ones(1000), ("a", "b"))
    >>> two, three = part_of(grades), part_of(grades, decision=True)
    >>> torch.bincount(two).tolist(), torch.bincount(three).tolist(), bool((two[three == 0] == 0).all())
    ([527, 473], [527, 295, 178], True)
    """
    sources = as_array(grades.ids if grades.groups is None else grades.groups)
    parts = (_hashed(sources, seed + _SALT) % np.uint64(2)).astype(np.int64)
    if decision:
        parts[(parts == Part.REPORT) & (_hashed(sources, seed + _DECISION_SALT) % np.uint64(5) < 2)] = Part.DECISION
    if spent:
        parts[(parts == Part.DISCOVERY) & (_hashed(sources, seed + _SPENT_SALT) % np.uint64(2) == 1)] = Part.SPENT
    return torch.from_numpy(parts)


def in_report_part(grades: Grades, *, seed: int = 0, decision: bool = False) -> Tensor:
    """Return which examples are in the report part, (N,) bool; see :func:`part_of`.

    >>> rows = torch.arange(6)
    >>> grades = Grades(rows, rows % 2, rows % 2, torch.ones(6), ("a", "b"), groups=torch.tensor([7, 7, 7, 8, 8, 9]))
    >>> mask = in_report_part(grades)
    >>> len(mask), len(mask[:3].unique()), len(mask[3:5].unique())
    (6, 1, 1)
    """
    return part_of(grades, seed=seed, decision=decision) == Part.REPORT


def take_grades(grades: Grades, rows: Tensor) -> Grades:
    """Return the rows of ``grades`` that a mask (N,) bool selects."""
    return Grades(
        ids=grades.ids[rows],
        labels=grades.labels[rows],
        predictions=None if grades.predictions is None else grades.predictions[rows],
        confidence=None if grades.confidence is None else grades.confidence[rows],
        class_names=grades.class_names,
        groups=None if grades.groups is None else grades.groups[rows],
        coverage=grades.coverage,
        verdicts=None if grades.verdicts is None else grades.verdicts[rows],
        digests=None if grades.digests is None else grades.digests[rows],
        margin=None if grades.margin is None else grades.margin[rows],
    )


@dataclass(frozen=True, eq=False)
class FrozenSlice:
    """The m examples of a held-out part that were flagged when an intervention began, as they were then.

    Attributes:
        keys: Their ids and digests.
        failed: (m,) bool.
    """

    keys: ExampleKeys
    failed: BoolArray

    def error_rate(self, grades: Grades) -> float | None:
        """Return the error rate of the slice now; None if no example of it was graded.

        Examples are found again by their digests. If only some are found, the rate is that of all examples then, plus
        the change on those that were found: which of them a validation set happens to hold does not move it.

        Args:
            grades: Grades of the same part.

        >>> rows = torch.arange(4)
        >>> now = Grades(rows, rows * 0, torch.tensor([1, 0, 0, 0]), torch.ones(4), ("cat", "dog"))
        >>> FrozenSlice(ExampleKeys(np.array([0, 1, 9])), np.array([True, True, True])).error_rate(now)
        0.5
        """
        present = ExampleKeys.of(grades)
        then, found = join_examples(self.keys, present)
        if not len(then):
            return None
        rows = np.searchsorted(as_array(grades.ids), present.ids[found])
        now = as_array(grades.failed)[rows]
        if len(then) == len(self.keys):
            return float(now.mean())
        change = now.astype(np.float64) - self.failed[then]
        return float(np.clip(self.failed.mean() + change.mean(), 0, 1))


def report_numbers(
    grades: Grades, flagged: Tensor | FrozenSlice | None = None, *, part: str = "report"
) -> dict[str, float]:
    """Return the headline numbers of a held-out part; undefined ones are left out.

    Args:
        grades: Grades of this part.
        flagged: The slice of this part that was flagged when an intervention began, or its ids (m,) int64, or None.
        part: Prefix of the keys: "report" or "decision".

    >>> rows = torch.arange(40)
    >>> grades = Grades(rows, rows % 2, torch.zeros(40).long(), torch.ones(40), ("cat", "dog"))
    >>> report_numbers(grades, torch.tensor([1, 2, 3, 4]))
    {'report/accuracy': 0.5, 'report/worst_class_accuracy': 0.0, 'report/flagged_error_rate': 0.5}
    """
    labels, correct = as_array(grades.labels), as_array(grades.correct)
    numbers = {}
    if len(correct):
        numbers[f"{part}/accuracy"] = float(correct.mean())
    sizes = np.bincount(labels, minlength=len(grades.class_names))
    counted = sizes >= MIN_EXAMPLES
    if counted.any():
        right = np.bincount(labels, weights=correct, minlength=len(sizes))
        numbers[f"{part}/worst_class_accuracy"] = float((right[counted] / sizes[counted]).min())
    if isinstance(flagged, FrozenSlice):
        rate = flagged.error_rate(grades)
        if rate is not None:
            numbers[f"{part}/flagged_error_rate"] = rate
    elif flagged is not None:
        mine = np.isin(as_array(grades.ids), as_array(flagged))
        if mine.any():
            numbers[f"{part}/flagged_error_rate"] = float(1 - correct[mine].mean())
    return numbers


def _hashed(sources: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    """Return the upper half of the hash of each source, (N,) uint64 below 2**32."""
    upper: NDArray[np.uint64] = stable_hash(sources, salt) >> np.uint64(32)
    return upper
