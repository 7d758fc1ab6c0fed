"""Exact copies among the analysed examples: they are one source, whether or not anyone knows of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lightning_failures.core.arrays import as_array
from lightning_failures.core.hashing import row_hashes
from lightning_failures.core.types import IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues
from lightning_failures.data.partition import Partition
from lightning_failures.stats.folds import join_sources

_ROWS_AT_ONCE = 256  # copied to be hashed


def join_sources_of_equal_digests(grades: Grades) -> Grades:
    """Join the sources of examples whose images have equal digests, before a validation set is split into parts.

    Copies of one image are then in the same part, and a bootstrap draws them together.
    """
    if grades.digests is None:
        return grades
    ids, digests = as_array(grades.ids), as_array(grades.digests)
    marks = np.where(digests >= 0, digests, -1 - np.unique(ids, return_inverse=True)[1])
    sources = ids if grades.groups is None else as_array(grades.groups)
    joined = join_sources(sources, marks)
    return grades if joined is sources else replace(grades, groups=torch.from_numpy(joined.astype(np.int64)))


def join_sources_of_copies(grades: Grades, held: RowValues, partition: Partition) -> tuple[Grades, int]:
    """Join the sources of examples whose values are exactly equal, in whichever process these are. Collective.

    Args:
        grades: N rows, the same in all processes.
        held: Embeddings or features of the rows that this process holds.
        partition: The exchange with the other processes.

    Returns:
        The grades, with joined groups if there are copies, and the number of examples that are copies of another one.
    """

    def hashes_of_held_rows() -> tuple[IntArray, IntArray]:
        rows = np.flatnonzero(held.finite())  # an example without values is no copy of another one
        blocks = (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))
        return rows, np.concatenate([np.empty(0, np.int64), *(row_hashes(as_array(held[block])) for block in blocks)])

    ids = as_array(grades.ids)
    _, example = np.unique(ids, return_inverse=True)
    marks = -1 - example  # unique for each example whose values no process holds, while hashes are never negative
    for rows, hashes in partition.workers.gather_results(hashes_of_held_rows):
        marks[rows] = hashes
    joined = join_sources(ids if grades.groups is None else as_array(grades.groups), marks)
    copies = len(np.unique(ids)) - len(np.unique(marks))
    if not copies:
        return grades, 0
    return replace(grades, groups=torch.from_numpy(joined.astype(np.int64))), copies
