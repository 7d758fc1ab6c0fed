"""Which examples belong to a class, and which embeddings to an example."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL, Grouping
from lightning_failures.errors import DataError

Rows = NDArray[np.int64]
Values = Tensor | NDArray[Any]

_SHARED = (torch.float16, torch.float32, torch.float64)  # dtypes that NumPy has too


@dataclass(frozen=True)
class ClassSubset:
    """The n examples with one label, or one prediction."""

    name: str
    rows: Rows  # their places among the grades, ascending
    ids: Rows
    failed: NDArray[np.bool_]
    sources: Rows | None

    def by_id(self) -> ClassSubset:
        """The same, in the order of the ids: where rows come in any order, nothing may depend on it."""
        order = np.argsort(self.ids, kind="stable")
        sources = None if self.sources is None else self.sources[order]
        return ClassSubset(self.name, self.rows[order], self.ids[order], self.failed[order], sources)


def members_of(
    grades: Grades, grouping: Grouping = LABEL, sampled: NDArray[np.bool_] | None = None
) -> list[ClassSubset]:
    """Return the examples of each group; the cost does not grow with the number of groups.

    Args:
        grades: N rows.
        grouping: How the examples are divided; by default by label, one group for each class.
        sampled: (N,) bool, the rows that count. None: every row.
    """
    assignment = grouping.assign(grades)
    column = assignment.group
    ids, failed = as_array(grades.ids), as_array(grades.failed)
    sources = None if grades.groups is None else as_array(grades.groups)
    order = np.argsort(column, kind="stable")
    order = order if sampled is None else order[sampled[order]]
    bounds = np.searchsorted(column[order], np.arange(len(assignment.names) + 1))
    return [
        ClassSubset(name, rows, ids[rows], failed[rows], None if sources is None else sources[rows])
        for name, rows in zip(assignment.names, (order[a:b] for a, b in pairwise(bounds)), strict=True)
    ]


@dataclass(frozen=True)
class RowValues:
    """Embeddings of those rows of the grades that are held; gathered only where they are read."""

    values: Values
    held: NDArray[np.bool_]  # (N,)
    place: Rows  # (N,) of those that are held
    in_order: bool  # one for each row that is held, as they come

    @classmethod
    def of(cls, values: Values, grades: Grades, held: NDArray[np.bool_], name: str) -> RowValues:
        """Match values, one for each row that is held or one for each distinct id among those, ascending.

        Raises:
            DataError: Neither number of rows.
        """
        if isinstance(values, Tensor) and values.device.type == "cpu" and values.dtype in _SHARED:
            values = values.detach().numpy()  # gathering tensors left 1 MiB a class behind in the heap
        count = int(held.sum())
        place = np.cumsum(held) - 1
        if len(values) != count:
            unique, place[held] = np.unique(as_array(grades.ids)[held], return_inverse=True)
            if len(values) != len(unique):
                raise DataError(f"{name} has {len(values)} rows; grades have {count} rows of {len(unique)} examples.")
        return cls(values, held, place, len(values) == count)

    def __getitem__(self, rows: Rows) -> Values:
        return self.values[self.place[rows]]

    def all(self) -> Values:
        """Of all rows that are held, in their order."""
        return self.values if self.in_order else self.values[self.place[self.held]]
