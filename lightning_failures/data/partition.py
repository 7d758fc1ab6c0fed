"""Divide an analysis between processes: each fits the classes that it owns, and all receive all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from lightning_failures.core.arrays import as_array, as_mask
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues

Key = TypeVar("Key")
T = TypeVar("T")


class Workers(Protocol):
    """The processes that share an analysis; each calls the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def gather_results(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` on every process and return all results, in rank order, on each; an error is raised on all."""


class _SingleProcess:
    """A single process, which owns every class."""

    rank, world_size = 0, 1

    def gather_results(self, work: Callable[[], T]) -> list[T]:
        return [work()]


SINGLE_PROCESS: Workers = _SingleProcess()
"""The workers of an analysis that is not distributed."""


def owner_of_classes(grades: Grades, processes: int) -> IntArray:
    """Return (K,) int64, the rank of the process that owns each class.

    Classes are dealt out from the largest to the smallest, to ranks 0, 1, ..., P - 1, P - 1, ..., 1, 0, 0, 1, ..., so
    that all processes get about as many examples.

    >>> import torch
    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    >>> grades = Grades(torch.arange(10), labels, labels, torch.ones(10), ("a", "b", "c", "d"))
    >>> owner_of_classes(grades, 2).tolist()
    [0, 1, 1, 0]
    """
    sizes = np.bincount(as_array(grades.labels), minlength=len(grades.class_names))
    turn = np.arange(len(sizes)) % (2 * processes)
    owner = np.empty(len(sizes), dtype=np.int64)
    owner[np.argsort(-sizes, kind="stable")] = np.minimum(turn, 2 * processes - 1 - turn)
    return owner


def owned_rows(
    grades: Grades, process: int, processes: int, *, sampled: BoolArray | None = None, predicted: bool = False
) -> BoolArray:
    """Return (N,) bool, the rows whose embeddings a process needs.

    Args:
        grades: N rows.
        process: Rank of the process.
        processes: Number of processes.
        sampled: (N,) bool, the rows that are analysed. None: every row.
        predicted: Whether to include rows whose prediction, and not only whose label, is a class of the process.

    >>> import torch
    >>> rows = torch.arange(4)
    >>> grades = Grades(rows, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), torch.ones(4), ("a", "b"))
    >>> owned_rows(grades, 1, 2).tolist(), owned_rows(grades, 1, 2, predicted=True).tolist()
    ([False, False, True, True], [False, True, True, True])
    """
    mine = owner_of_classes(grades, processes) == process
    rows: BoolArray = mine[as_array(grades.labels)]
    if predicted and grades.predictions is not None:
        rows = rows | mine[as_array(grades.predictions)]
    return rows if sampled is None else rows & sampled


@dataclass(frozen=True)
class Partition:
    """The part of an analysis that this process computes.

    Attributes:
        workers: All processes of the analysis.
        owner: (K,) int64, the rank of the process that owns each class.
        sampled: (N,) bool, the rows that are analysed, by any process.
        rows: (N,) bool, the sampled rows whose label is a class of this process.
        predicted_rows: (N,) bool, the sampled rows whose label or prediction is a class of this process.
    """

    workers: Workers
    owner: IntArray
    sampled: BoolArray
    rows: BoolArray
    predicted_rows: BoolArray

    @classmethod
    def of(cls, grades: Grades, sampled: Any, workers: Workers) -> Partition:
        """Return the part of this process; ``sampled`` is (N,) bool, or None for every row."""
        mask = np.ones(len(grades), dtype=bool) if sampled is None else as_mask(sampled, "sampled", len(grades))
        rank, world_size = workers.rank, workers.world_size
        return cls(
            workers,
            owner_of_classes(grades, world_size),
            mask,
            owned_rows(grades, rank, world_size, sampled=mask),
            owned_rows(grades, rank, world_size, sampled=mask, predicted=True),
        )

    def only(self, rows: BoolArray) -> Partition:
        """Return the same partition of those sampled rows that a mask (N,) bool, the same everywhere, selects."""
        return replace(
            self, sampled=self.sampled & rows, rows=self.rows & rows, predicted_rows=self.predicted_rows & rows
        )

    def raise_first(self, errors: Sequence[Exception]) -> None:
        """Raise the first error of this process; a process without one raises that of another. Collective."""

        def fail() -> None:
            if errors:
                raise errors[0]

        self.workers.gather_results(fail)

    def without_missing(self, values: RowValues, ids: Any) -> tuple[Partition, RowValues, IntArray]:
        """Leave out the examples of which any process holds a value that is not finite. Collective.

        Args:
            values: The values that this process holds.
            ids: (N,) the id of each row.

        Returns:
            The partition and the values without these examples, and the ids of these: (m,) int64, ascending.
        """
        all_ids = as_array(ids)
        lacking = values.held & ~values.finite()
        missing = np.unique(np.concatenate(self.workers.gather_results(lambda: all_ids[lacking])))
        if not len(missing):
            return self, values, missing
        kept = ~np.isin(all_ids, missing)
        return self.only(kept), values.only(kept), missing

    def owns(self, k: int) -> bool:
        """Return whether this process owns class k."""
        return bool(self.owner[k] == self.workers.rank)

    def merge_results(self, work: Callable[[], dict[Key, T]]) -> dict[Key, T]:
        """Run ``work`` on every process and return the merged results, by key."""
        return {key: value for part in self.workers.gather_results(work) for key, value in part.items()}
