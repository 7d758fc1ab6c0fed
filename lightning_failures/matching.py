"""Whether two analyses have found the same failure mode, and whether it has grown between them.

Two modes of a class are alike as far as their directions point the same way and the same examples are their members.
The weights and the threshold are calibrated on planted modes and real trainings, where it is known what is the same:
``benchmarks/diary.py``. The cosine has most of the weight: failures come and go, and two modes share some by chance
(red nines and thick nines have the red, thick ones in common), while the directions of different modes of one class are
nearly orthogonal, or opposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from scipy.special import bdtr  # type: ignore[import-untyped]

__all__ = ["ALIKE", "COSINE_WEIGHT", "LEVEL", "Likeness", "Look", "change", "likeness", "matches", "sign_test"]

COSINE_WEIGHT = 0.8
"""Of the cosine in the similarity; the share of common members has the rest."""

ALIKE = 0.36
"""Modes of at least this similarity may be the same."""

LEVEL = 0.05
"""Of the test of whether a mode has grown or shrunk."""

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Look:
    """What one analysis saw of a mode.

    Attributes:
        ids: (n,) int64, ascending: the examples of its class that were looked at.
        members: (n,) bool: flagged and failed.
    """

    ids: Rows
    members: Mask

    @property
    def size(self) -> int:
        """How many members."""
        return int(np.count_nonzero(self.members))

    def told_as(self, other: Look) -> Look:
        """Itself, with the other's ids if they are the same: most analyses look at the same examples."""
        return replace(self, ids=other.ids) if np.array_equal(self.ids, other.ids) else self


def _on_shared(one: Look, other: Look) -> tuple[Mask, Mask]:
    """Members of both among the (s,) examples that both have looked at."""
    if one.ids is other.ids or np.array_equal(one.ids, other.ids):
        return one.members, other.members
    _, mine, its = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
    return one.members[mine], other.members[its]


@dataclass(frozen=True)
class Likeness:
    """How alike two modes are.

    Attributes:
        cosine: Of their directions, in [-1, 1].
        shared: The overlap coefficient, the share of the smaller set of members that both have, among the examples that
            both analyses have looked at; None where a set is empty there.
    """

    cosine: float
    shared: float | None

    @property
    def similarity(self) -> float:
        """At most 1; the cosine alone where nothing can be said of members.

        >>> Likeness(0.5, 1.0).similarity, Likeness(0.5, None).similarity
        (0.6, 0.5)
        """
        if self.shared is None:
            return self.cosine
        return COSINE_WEIGHT * self.cosine + (1 - COSINE_WEIGHT) * self.shared


def likeness(direction: NDArray[np.floating], look: Look, other: NDArray[np.floating], other_look: Look) -> Likeness:
    """Compare two modes.

    Args:
        direction: (D,) float, unit length.
        look: What was seen of it.
        other: (D,) float, unit length.
        other_look: Likewise.

    >>> ids = np.arange(4)
    >>> one, two = Look(ids, np.array([True, True, False, False])), Look(ids, np.array([False, True, True, True]))
    >>> likeness(np.array([1.0, 0.0]), one, np.array([0.6, 0.8]), two)
    Likeness(cosine=0.6, shared=0.5)
    """
    members, others = _on_shared(look, other_look)
    least = min(np.count_nonzero(members), np.count_nonzero(others))
    shared = float(np.count_nonzero(members & others) / least) if least else None
    return Likeness(float(np.clip(np.dot(direction, other), -1.0, 1.0)), shared)  # rounded: may be too long


def matches(table: Sequence[Sequence[Likeness]]) -> list[tuple[int, int]]:
    """Pair the modes of two analyses one to one, with the largest sum of similarities; none below :data:`ALIKE`.

    Args:
        table: Row i, column j: how alike mode i of the one and mode j of the other are.

    Returns:
        Pairs (i, j), by i.

    >>> matches([[Likeness(0.9, None), Likeness(0.8, None)], [Likeness(0.8, None), Likeness(0.1, None)]])
    [(0, 1), (1, 0)]
    """
    if not table or not table[0]:
        return []
    similarity = np.array([[pair.similarity for pair in row] for row in table])
    rows, columns = linear_sum_assignment(np.where(similarity >= ALIKE, similarity, 0.0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if similarity[i, j] >= ALIKE]


def change(now: Look, then: Look) -> tuple[int, int]:
    """Return how many members came and how many went, among the examples that both analyses have looked at.

    >>> change(Look(np.array([1, 2, 3]), np.ones(3, bool)), Look(np.array([2, 3, 4]), np.array([False, True, True])))
    (1, 0)
    """
    members, former = _on_shared(now, then)
    return int(np.count_nonzero(members & ~former)), int(np.count_nonzero(former & ~members))


def sign_test(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of "an example comes as likely as it goes" (McNemar's test).

    It takes the examples that came and went as independent of each other.

    >>> sign_test(0, 6), sign_test(3, 3), sign_test(0, 0)
    (0.03125, 1.0, 1.0)
    """
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
