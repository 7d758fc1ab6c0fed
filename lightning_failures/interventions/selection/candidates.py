"""Candidates of a pool, ranked class by class, and the picks among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.hashing import stable_hash


@dataclass(frozen=True, eq=False)
class Candidates:
    """Some n rows of a pool, as columns of equal length.

    Attributes:
        labels: (n,) int64.
        values: (n,) float32, ranked in ascending order.
        identity: (n,) uint64, equal for exact copies; it also ranks equal values.
        ids: (n,) int64.
        copies: (n,) int64, number of rows of this identity seen so far, this one included.
        keys: (n, 2) int64 content keys, or None.
        embeddings: (n, D) float, or None.
    """

    labels: NDArray[np.int64]
    values: NDArray[np.float32]
    identity: NDArray[np.uint64]
    ids: NDArray[np.int64]
    copies: NDArray[np.int64]
    keys: NDArray[np.int64] | None = None
    embeddings: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> Candidates:
        """Return the rows that an index array, a mask or a slice selects."""
        columns = {name: column[rows] for name, column in self._columns().items() if column is not None}
        return dataclasses.replace(self, **columns)

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """Return the rows of all parts, at least one, which have the same columns."""
        names = [name for name, column in parts[0]._columns().items() if column is not None]
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Candidates(**columns)

    def _columns(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True, eq=False)
class ClassPicks:
    """The picks of one class, and counts of the rows that they were picked from.

    Attributes:
        ids: (n,) int64, the best first.
        values: (n,) float32, the values that they were ranked by: decision values, confidences, or a hash in [0, 1) for
            ``"random"``.
        seen: Number of rows of this class in the pool.
        eligible: Number of these that can be picked: their value is known and, for ``"flagged_confidence"``, they are
            flagged; copies of training images are excluded.
        in_training: Number of exact copies of training images.
        copies: Number of exact copies of each other among the candidates, without the one that is kept.
        near_duplicates: Number of candidates better than the last pick that were too similar to a training image or to
            an earlier pick.
        suspected: Number of candidates excluded because their label is probably wrong.
        in_validation: Number of rows excluded because they are, or nearly are, images of the validation set.
        shortfall: Why there are fewer than k picks, or None.
    """

    ids: Tensor
    values: Tensor
    seen: int = 0
    eligible: int = 0
    in_training: int = 0
    copies: int = 0
    near_duplicates: int = 0
    suspected: int = 0
    in_validation: int = 0
    shortfall: str | None = None


@dataclass(frozen=True, eq=False)
class Picks:
    """The picks from a pool.

    Attributes:
        classes: Class -> its picks, ascending; requested classes that are absent from the pool are included.
        seen: Number of rows of the pool, of any class.
        left_out: Reason for each item of the pool that could not be read or embedded, by id.
    """

    classes: Mapping[int, ClassPicks]
    seen: int
    left_out: Mapping[int, str] = field(default_factory=dict)

    @property
    def ids(self) -> Tensor:
        """(n,) int64, ids of all picks, class by class."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *(c.ids for c in self.classes.values())])

    @property
    def labels(self) -> Tensor:
        """(n,) int64, classes of :attr:`ids`."""
        return torch.tensor([label for label, c in self.classes.items() for _ in c.ids.tolist()], dtype=torch.int64)

    @property
    def shortfalls(self) -> dict[int, str]:
        """Class -> why it has fewer than k picks; other classes are left out."""
        return {label: c.shortfall for label, c in self.classes.items() if c.shortfall is not None}


def identities(keys: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Hash content keys (n, 2), or ids (n,), to one pseudo-random number each, (n,) uint64."""
    if keys.ndim == 1:
        return stable_hash(keys, seed)
    return stable_hash(keys[:, 0] + stable_hash(keys[:, 1], seed).view(np.int64), seed)


def best_candidates(rows: Candidates, limit: int) -> Candidates:
    """Return the best row of each identity, and of these the best ``limit`` of every class, by class and rank.

    Taking the best of some rows, joining others and taking the best again gives the best of all rows: a dropped row had
    ``limit`` better ones, which are only ever replaced by better ones.

    >>> column = np.arange(4)
    >>> rows = Candidates(column * 0, np.float32([3, 1, 2, 1]), np.uint64([7, 8, 7, 9]), column, column * 0 + 1)
    >>> best = best_candidates(rows, 2)
    >>> best.ids.tolist(), best_candidates(rows, 3).copies.tolist()
    ([1, 3], [1, 1, 2])
    """
    # the best row of each identity, with the number of its copies
    order = np.lexsort((rows.ids, rows.values, rows.identity, rows.labels))
    labels, identity = rows.labels[order], rows.identity[order]
    first = np.ones(len(rows), dtype=np.bool_)
    first[1:] = (labels[1:] != labels[:-1]) | (identity[1:] != identity[:-1])
    start = np.flatnonzero(first)
    copies = np.add.reduceat(rows.copies[order], start) if len(start) else rows.copies
    order = order[start]

    # the best rows of every class
    ranked = np.lexsort((rows.identity[order], rows.values[order], rows.labels[order]))
    _, begin, member = np.unique(rows.labels[order[ranked]], return_index=True, return_inverse=True)
    kept = ranked[np.arange(len(ranked)) - begin[member] < limit]
    return dataclasses.replace(rows.take(order[kept]), copies=copies[kept])
