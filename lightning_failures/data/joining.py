"""Join two looks at data: which example of one is which example of the other.

An index in a dataset identifies an example within one pass only: files are added, subsets are drawn again. So examples
are joined by the digests of their images (:mod:`lightning_failures.data.digests`), and examples whose digests differ
are never compared. Where one of the looks has no digests, ids are all there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.grades import Grades


@dataclass(frozen=True, eq=False)
class ExampleKeys:
    """What identifies the n examples of one look at data.

    Attributes:
        ids: (n,) int64, distinct and ascending.
        digests: (n,) int64, -1 for an example whose image is unknown; None if all are.
    """

    ids: IntArray
    digests: IntArray | None = None

    @classmethod
    def of(cls, grades: Grades) -> ExampleKeys:
        """Return the keys of the graded examples, each once, also where one has several rows.

        >>> import torch
        >>> zeros = torch.zeros(3).long()
        >>> ExampleKeys.of(Grades(torch.tensor([4, 4, 9]), zeros, zeros, torch.ones(3), ("a",))).ids.tolist()
        [4, 9]
        """
        ids, rows = np.unique(as_array(grades.ids), return_index=True)
        return cls(ids, None if grades.digests is None else as_array(grades.digests)[rows])

    def __len__(self) -> int:
        return len(self.ids)

    def same_as(self, other: ExampleKeys) -> bool:
        """Return whether both looks hold the same examples under the same ids."""
        if self.ids is not other.ids and not np.array_equal(self.ids, other.ids):
            return False
        if self.digests is None or other.digests is None or self.digests is other.digests:
            return self.digests is other.digests
        return np.array_equal(self.digests, other.digests)

    def take(self, rows: IntArray | BoolArray) -> ExampleKeys:
        """Return the keys of some examples."""
        return ExampleKeys(self.ids[rows], None if self.digests is None else self.digests[rows])


def join_examples(one: ExampleKeys, other: ExampleKeys) -> tuple[IntArray, IntArray]:
    """Join the examples of two looks, each with at most one of the other look.

    Examples with the same digest are joined: those with the same id first, then the others in the order of their ids,
    so that of m and n copies of one image min(m, n) are joined. An example whose image is unknown joins nothing, unless
    one of the looks has no digests at all: then examples with the same id are joined.

    Returns:
        Rows (s,) of ``one``, ascending, and the rows (s,) of ``other`` that are the same examples.

    >>> one = ExampleKeys(np.array([0, 1, 2]), np.array([7, 8, 9]))
    >>> moved = ExampleKeys(np.array([0, 1, 2, 3]), np.array([5, 7, 8, 8]))
    >>> [rows.tolist() for rows in join_examples(one, moved)]
    [[0, 1], [1, 2]]
    """
    _, rows, others = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
    if one.digests is None or other.digests is None:
        return rows, others
    same = (one.digests[rows] == other.digests[others]) & (one.digests[rows] != UNKNOWN_DIGEST)
    rows, others = rows[same], others[same]
    more, more_others = _join_copies(_left(one.digests, rows), _left(other.digests, others), one.digests, other.digests)
    rows, others = np.concatenate([rows, more]), np.concatenate([others, more_others])
    order = np.argsort(rows)
    return rows[order], others[order]


def rows_of(examples: ExampleKeys, grades: Grades) -> BoolArray:
    """Return the rows of ``grades`` whose example is one of ``examples``: (N,) bool."""
    now = ExampleKeys.of(grades)
    _, found = join_examples(examples, now)
    return np.isin(as_array(grades.ids), now.ids[found])


def has_digests(digests: Tensor) -> bool:
    """Return whether any of the digests is known."""
    return bool((digests != UNKNOWN_DIGEST).any())


def _left(digests: IntArray, joined: IntArray) -> IntArray:
    """Return the rows with a known digest that are not joined yet."""
    free = digests != UNKNOWN_DIGEST
    free[joined] = False
    return np.flatnonzero(free)


def _join_copies(
    rows: IntArray, others: IntArray, digests: IntArray, other_digests: IntArray
) -> tuple[IntArray, IntArray]:
    """Join rows with the same digest: the first copy of an image with the first, the second with the second."""
    if not len(rows) or not len(others):
        return rows[:0], others[:0]
    _, image = np.unique(np.concatenate([digests[rows], other_digests[others]]), return_inverse=True)
    width = len(image)
    keys = image[: len(rows)] * width + _copy_numbers(image[: len(rows)])
    other_keys = image[len(rows) :] * width + _copy_numbers(image[len(rows) :])
    _, places, other_places = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
    return rows[places], others[other_places]


def _copy_numbers(values: IntArray) -> IntArray:
    """Return the number of earlier occurrences of each value.

    >>> _copy_numbers(np.array([3, 5, 3, 3])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    starts = np.repeat(first, np.diff(first, append=len(values)))
    numbers = np.empty(len(values), dtype=np.int64)
    numbers[order] = np.arange(len(values)) - starts
    return numbers
