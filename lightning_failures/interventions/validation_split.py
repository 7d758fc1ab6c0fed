"""Parts of a validation set: what finds the failures that are acted on, what tells whether it helped, what decides.

Whoever steers a training by a validation set can no longer be judged on it. So while interventions are on, directions
and trees are fitted on the *discovery* part, and the headline numbers are read on the *report* part. What a decision
hangs on (an intervention that is undone, a checkpoint that is kept) is read on a third one, the *decision* part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.hashing import stable_hash
from lightning_failures.data.grades import Grades
from lightning_failures.directions.fit import FailureDirections

DISCOVERY, REPORT, DECISION = 0, 1, 2
"""What :func:`part_of` numbers the parts by."""

MIN_EXAMPLES = 10
"""A class with fewer examples in the report part does not count as the worst."""

_SALT = 0x5EED
_DECISION_SALT = 0xDEC1DE


@dataclass(frozen=True)
class HeldOutSplit:
    """The n graded rows of the report part.

    Attributes:
        grades: Of these examples only.
        values: (n,) float32, decision values by the directions of the discovery part, NaN where there is none.
    """

    grades: Grades
    values: Tensor

    @classmethod
    def of(cls, grades: Grades, embeddings: Tensor | None, directions: FailureDirections | None) -> HeldOutSplit:
        """Judge examples that the directions have not seen; ``embeddings`` has one row for each distinct id."""
        if embeddings is None or directions is None:
            return cls(grades, torch.full((len(grades),), float("nan")))
        _, place = np.unique(as_array(grades.ids), return_inverse=True)
        return cls(grades, directions.decision_values(embeddings[torch.from_numpy(place)], grades.labels))


def part_of(grades: Grades, *, seed: int = 0, decision: bool = False) -> Tensor:
    """The part of each example, by a hash of its group (of its id where there are no groups): (N,) int64.

    Half of the examples are ``DISCOVERY``, half ``REPORT``. With ``decision`` two fifths of the report part, so a fifth
    of all, are ``DECISION``: what finds the failures stays the same. A group is in one part as a whole, and in the same
    one in every epoch and run.

    >>> rows = torch.arange(1000)
    >>> grades = Grades(rows, rows % 2, rows % 2, torch.ones(1000), ("a", "b"))
    >>> two, three = part_of(grades), part_of(grades, decision=True)
    >>> torch.bincount(two).tolist(), torch.bincount(three).tolist(), bool((two[three == 0] == 0).all())
    ([527, 473], [527, 295, 178], True)
    """
    sources = as_array(grades.ids if grades.groups is None else grades.groups)
    parts = (_hashed(sources, seed + _SALT) % np.uint64(2)).astype(np.int64)
    if decision:
        parts[(parts == REPORT) & (_hashed(sources, seed + _DECISION_SALT) % np.uint64(5) < 2)] = DECISION
    return torch.from_numpy(parts)


def in_report_part(grades: Grades, *, seed: int = 0, decision: bool = False) -> Tensor:
    """Which examples are in the report part: (N,) bool. See :func:`part_of`.

    >>> rows = torch.arange(6)
    >>> grades = Grades(rows, rows % 2, rows % 2, torch.ones(6), ("a", "b"), groups=torch.tensor([7, 7, 7, 8, 8, 9]))
    >>> held = in_report_part(grades)
    >>> len(held), len(held[:3].unique()), len(held[3:5].unique())
    (6, 1, 1)
    """
    return part_of(grades, seed=seed, decision=decision) == REPORT


def take_grades(grades: Grades, rows: Tensor) -> Grades:
    """The rows (N,) bool of ``grades``."""
    return Grades(
        ids=grades.ids[rows],
        labels=grades.labels[rows],
        predictions=grades.predictions[rows],
        confidence=grades.confidence[rows],
        class_names=grades.class_names,
        groups=None if grades.groups is None else grades.groups[rows],
        coverage=grades.coverage,
    )


def report_numbers(grades: Grades, flagged: Tensor | None = None, *, part: str = "report") -> dict[str, float]:
    """The headline numbers of a part that nothing was fitted to, those that are defined.

    Args:
        grades: Of this part.
        flagged: Ids (m,) of the slice that was flagged when an intervention began, or None.
        part: Begins the keys: "report" or "decision".

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
    if flagged is not None:
        mine = np.isin(as_array(grades.ids), as_array(flagged))
        if mine.any():
            numbers[f"{part}/flagged_error_rate"] = float(1 - correct[mine].mean())
    return numbers


def _hashed(sources: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    """The upper half of the hash, (N,) uint64 below 2**32."""
    upper: NDArray[np.uint64] = stable_hash(sources, salt) >> np.uint64(32)
    return upper
