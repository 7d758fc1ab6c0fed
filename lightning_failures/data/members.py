"""The examples of each class or group, and access to the embeddings of examples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_rows, finite_rows_of
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL, Grouping
from lightning_failures.errors import DataError

Values = Tensor | NDArray[Any]
"""Embeddings or features, (N, D), or another value per row."""

_NUMPY_DTYPES = (torch.float16, torch.float32, torch.float64)  # floating point types that NumPy has too


@dataclass(frozen=True)
class ClassSubset:
    """The n graded rows of one class or group.

    Attributes:
        name: Name of the class or group.
        rows: (n,) int64, row indices into the grades; ascending, unless sorted by id.
        ids: (n,) int64, the ids of the examples.
        failed: (n,) bool: the model is wrong.
        sources: (n,) int64, the id of each example's source; None if every example is its own source.
    """

    name: str
    rows: IntArray
    ids: IntArray
    failed: BoolArray
    sources: IntArray | None

    def by_id(self) -> ClassSubset:
        """Return the subset sorted by id, for results that must not depend on the order of rows."""
        return self.take(np.argsort(self.ids, kind="stable"))

    def take(self, rows: IntArray | BoolArray) -> ClassSubset:
        """Return some of the rows, by index or by mask (n,)."""
        sources = None if self.sources is None else self.sources[rows]
        return ClassSubset(self.name, self.rows[rows], self.ids[rows], self.failed[rows], sources)


def members_of(grades: Grades, grouping: Grouping = LABEL, sampled: BoolArray | None = None) -> list[ClassSubset]:
    """Return the rows of each group; the cost does not grow with the number of groups.

    Args:
        grades: N rows.
        grouping: How the examples are divided; by default by label, one group per class.
        sampled: (N,) bool, the rows to include. None: every row.
    """
    assignment = grouping.assign(grades)
    ids, failed = as_array(grades.ids), as_array(grades.failed)
    sources = None if grades.groups is None else as_array(grades.groups)

    # one entry per row and group, since groups may overlap
    group = assignment.group if assignment.group.ndim == 2 else assignment.group[:, None]
    entry_row, entry_group = np.repeat(np.arange(len(group)), group.shape[1]), group.ravel()

    # sort the entries by group, then cut them at the group boundaries
    order = np.argsort(entry_group, kind="stable")
    if sampled is not None:
        order = order[sampled[entry_row[order]]]
    bounds = np.searchsorted(entry_group[order], np.arange(len(assignment.names) + 1))
    subsets = []
    for name, (start, stop) in zip(assignment.names, pairwise(bounds), strict=True):
        rows = entry_row[order[start:stop]]
        subsets.append(ClassSubset(name, rows, ids[rows], failed[rows], None if sources is None else sources[rows]))
    return subsets


@dataclass(frozen=True)
class RowValues:
    """Embeddings of the graded rows that this process holds; indexing by row copies only the rows it reads.

    Attributes:
        values: (V, D), one row per held row of the grades, or one per distinct id.
        held: (N,) bool, the rows of the grades that have a value.
        place: (N,) int64, the index into ``values`` of each held row; undefined for other rows.
        in_order: Whether ``values`` has one row per held row, in the same order.
    """

    values: Values
    held: BoolArray
    place: IntArray
    in_order: bool

    @classmethod
    def of(cls, values: Values, grades: Grades, held: BoolArray, name: str) -> RowValues:
        """Match values to the rows of the grades.

        Args:
            values: (V, D), one row per held row, or one per distinct id among the held rows, ascending.
            grades: N rows.
            held: (N,) bool, the rows that have a value.
            name: Name of the values in messages.

        Raises:
            DataError: The number of values is neither of the two.
        """
        if isinstance(values, Tensor) and values.device.type == "cpu" and values.dtype in _NUMPY_DTYPES:
            values = values.detach().numpy()  # indexing tensors leaves 1 MiB per class in the heap
        elif not hasattr(values, "dtype"):  # a sequence; arrays keep their own type, in memory or on disk
            values = np.asarray(values)
        count = int(held.sum())
        place = np.cumsum(held) - 1
        if len(values) != count:
            unique, place[held] = np.unique(as_array(grades.ids)[held], return_inverse=True)
            if len(values) != len(unique):
                raise DataError(f"{name} has {len(values)} rows; grades have {count} rows of {len(unique)} examples.")
        return cls(values, held, place, len(values) == count)

    def finite(self) -> BoolArray:
        """Return which rows of the grades are held and have a finite value: (N,) bool."""
        if len(self.values) == 0 or np.ndim(self.values) < 2:
            return self.held
        flat = self.values if self.values.ndim == 2 else self.values.reshape(len(self.values), -1)
        is_finite = finite_rows_of(as_rows(flat, "values", finite=False))
        mask = self.held.copy()
        mask[self.held] = is_finite[self.place[self.held]]
        return mask

    def only(self, rows: BoolArray) -> RowValues:
        """Return the values of those held rows that a mask (N,) bool selects."""
        kept = self.held & rows
        return self if kept.sum() == self.held.sum() else RowValues(self.values, kept, self.place, in_order=False)

    def __getitem__(self, rows: IntArray) -> Values:
        """Return the values of (n,) held rows."""
        return self.values[self.place[rows]]

    def all(self) -> Values:
        """Return the values of all held rows, in the order of the rows."""
        return self.values if self.in_order else self.values[self.place[self.held]]
