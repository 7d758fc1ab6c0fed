"""How several processes share one analysis out: each fits the classes that it owns, and all get all results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, as_mask
from lightning_failures.data.grades import Grades

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
    """One process that does everything."""

    rank, world_size = 0, 1

    def gather_results(self, work: Callable[[], T]) -> list[T]:
        return [work()]


SINGLE_PROCESS: Workers = _SingleProcess()


def owner_of_classes(grades: Grades, processes: int) -> NDArray[np.int64]:
    """Deal the classes to the processes, the largest first, there and back: (K,) int64, the owner of each class.

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
    grades: Grades, process: int, processes: int, *, sampled: NDArray[np.bool_] | None = None, predicted: bool = False
) -> NDArray[np.bool_]:
    """Which rows a process needs: (N,) bool.

    Args:
        grades: N rows.
        process: Its number.
        processes: How many there are.
        sampled: (N,) bool, the rows that take part at all. None: every row.
        predicted: Also those rows whose prediction, not only whose label, is a class that the process owns.

    >>> import torch
    >>> rows = torch.arange(4)
    >>> grades = Grades(rows, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), torch.ones(4), ("a", "b"))
    >>> owned_rows(grades, 1, 2).tolist(), owned_rows(grades, 1, 2, predicted=True).tolist()
    ([False, False, True, True], [False, True, True, True])
    """
    mine = owner_of_classes(grades, processes) == process
    rows: NDArray[np.bool_] = mine[as_array(grades.labels)]
    if predicted:
        rows = rows | mine[as_array(grades.predictions)]
    return rows if sampled is None else rows & sampled


@dataclass(frozen=True)
class Partition:
    """What this process does of the whole.

    Attributes:
        sharing: The processes.
        owner: (K,) int64, the process of each class.
        sampled: (N,) bool, the rows that are looked at by any of them.
        rows: (N,) bool, those of them whose label is a class of this process.
        predicted_rows: (N,) bool, those whose label or prediction is one.
    """

    sharing: Workers
    owner: NDArray[np.int64]
    sampled: NDArray[np.bool_]
    rows: NDArray[np.bool_]
    predicted_rows: NDArray[np.bool_]

    @classmethod
    def of(cls, grades: Grades, sampled: Any, sharing: Workers) -> Partition:
        """The share of this process; ``sampled`` (N,) bool or None for all."""
        looked_at = np.ones(len(grades), dtype=bool) if sampled is None else as_mask(sampled, "sampled", len(grades))
        rows, predicted = (
            owned_rows(grades, sharing.rank, sharing.world_size, sampled=looked_at, predicted=either)
            for either in (False, True)
        )
        return cls(sharing, owner_of_classes(grades, sharing.world_size), looked_at, rows, predicted)

    def owns(self, k: int) -> bool:
        """Whether the class k is this process's."""
        return bool(self.owner[k] == self.sharing.rank)

    def merge_results(self, work: Callable[[], dict[Key, T]]) -> dict[Key, T]:
        """Run ``work`` on every process and return the results of all, by key."""
        return {key: value for part in self.sharing.gather_results(work) for key, value in part.items()}
