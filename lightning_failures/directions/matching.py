"""Whether two analyses have found the same failure mode, and whether it has grown between them.

Two modes of a class are alike as far as their directions point the same way and the same examples are their members.
The weights and the threshold are calibrated on planted modes and real trainings, where it is known what is the same:
``benchmarks/diary.py``. The cosine has most of the weight: failures come and go, and two modes share some by chance
(red nines and thick nines have the red, thick ones in common), while the directions of different modes of one class are
nearly orthogonal, or opposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

COSINE_WEIGHT = 0.8
"""Of the cosine in the similarity; the share of common members has the rest."""

SAME_MODE_SIMILARITY = 0.36
"""Modes of at least this similarity may be the same."""

CHANGE_LEVEL = 0.05
"""Of the test of whether a mode has grown or shrunk."""

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ModeSnapshot:
    """What one analysis saw of a mode.

    Attributes:
        ids: (n,) int64, ascending: the examples of its class that were looked at.
        flagged: (n,) bool: the decision value is negative.
        failed: (n,) bool.
    """

    ids: Rows
    flagged: Mask
    failed: Mask

    @property
    def members(self) -> Mask:
        """(n,) bool: flagged failures."""
        return self.flagged & self.failed

    @property
    def size(self) -> int:
        """How many members."""
        return int(np.count_nonzero(self.members))


def restrict_to_shared(one: ModeSnapshot, other: ModeSnapshot) -> tuple[ModeSnapshot, ModeSnapshot]:
    """Both, of the (s,) examples alone that both have looked at.

    >>> some = np.ones(3, dtype=bool)
    >>> mode, other = (ModeSnapshot(np.array(ids), some, some) for ids in ([1, 2, 3], [2, 3, 4]))
    >>> one, two = restrict_to_shared(mode, other)
    >>> one.ids.tolist(), two.ids.tolist()
    ([2, 3], [2, 3])
    """
    if one.ids is other.ids or np.array_equal(one.ids, other.ids):
        return one, other
    shared, *rows = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
    mine, its = (
        ModeSnapshot(shared, look.flagged[kept], look.failed[kept])
        for look, kept in zip((one, other), rows, strict=True)
    )
    return mine, its


@dataclass(frozen=True)
class ModeSimilarity:
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

        >>> ModeSimilarity(0.5, 1.0).similarity, ModeSimilarity(0.5, None).similarity
        (0.6, 0.5)
        """
        if self.shared is None:
            return self.cosine
        return COSINE_WEIGHT * self.cosine + (1 - COSINE_WEIGHT) * self.shared


def mode_similarity(
    direction: NDArray[np.floating], look: ModeSnapshot, other: NDArray[np.floating], other_look: ModeSnapshot
) -> ModeSimilarity:
    """Compare two modes.

    Args:
        direction: (D,) float, unit length.
        look: What was seen of it.
        other: (D,) float, unit length.
        other_look: Likewise.

    >>> ids, failed = np.arange(4), np.ones(4, dtype=bool)
    >>> one = ModeSnapshot(ids, np.array([True, True, False, False]), failed)
    >>> two = ModeSnapshot(ids, np.array([False, True, True, True]), failed)
    >>> mode_similarity(np.array([1.0, 0.0]), one, np.array([0.6, 0.8]), two)
    ModeSimilarity(cosine=0.6, shared=0.5)
    """
    members, others = (one.members for one in restrict_to_shared(look, other_look))
    least = min(np.count_nonzero(members), np.count_nonzero(others))
    shared = float(np.count_nonzero(members & others) / least) if least else None
    return ModeSimilarity(float(np.clip(np.dot(direction, other), -1.0, 1.0)), shared)  # rounded: may be too long


def match_modes(table: Sequence[Sequence[ModeSimilarity]]) -> list[tuple[int, int]]:
    """Pair the modes of two analyses one to one, with the largest sum of similarities.

    No pair has a similarity below :data:`SAME_MODE_SIMILARITY`.

    Args:
        table: Row i, column j: how alike mode i of the one and mode j of the other are.

    Returns:
        Pairs (i, j), by i.

    >>> cosines = [[0.9, 0.8], [0.8, 0.1]]
    >>> match_modes([[ModeSimilarity(cosine, None) for cosine in row] for row in cosines])
    [(0, 1), (1, 0)]
    """
    if not table or not table[0]:
        return []
    similarity = np.array([[pair.similarity for pair in row] for row in table])
    rows, columns = linear_sum_assignment(np.where(similarity >= SAME_MODE_SIMILARITY, similarity, 0.0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if similarity[i, j] >= SAME_MODE_SIMILARITY]


def membership_change(now: ModeSnapshot, then: ModeSnapshot) -> tuple[int, int]:
    """Return how many members came and how many went, among the examples that both analyses have looked at.

    >>> ids, yes = np.array([1, 2, 3]), np.ones(3, dtype=bool)
    >>> membership_change(ModeSnapshot(ids, yes, yes), ModeSnapshot(ids + 1, np.array([False, True, True]), yes))
    (1, 0)
    """
    members, former = (look.members for look in restrict_to_shared(now, then))
    return int(np.count_nonzero(members & ~former)), int(np.count_nonzero(former & ~members))


def flagged_change(now: ModeSnapshot, then: ModeSnapshot) -> tuple[int, int]:
    """Return how many of those that were flagged *then* have come to fail, and how many have ceased to.

    The slice is frozen, so that a bias which the next fit has moved is no change. Decision values are cross-fitted:
    whether an example was flagged does not depend on its own failure, so that it comes as likely as it goes if nothing
    has changed.

    >>> ids, yes, no = np.array([1, 2, 3]), np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    >>> flagged_change(ModeSnapshot(ids, no, yes), ModeSnapshot(ids, np.array([True, True, False]), no))
    (2, 0)
    """
    now, then = restrict_to_shared(now, then)
    came, went = now.failed & ~then.failed, then.failed & ~now.failed
    return int(np.count_nonzero(then.flagged & came)), int(np.count_nonzero(then.flagged & went))
