"""Compare failure modes of two analyses: are two modes the same one, and has the mode grown or shrunk?

Two modes of a class are similar if their directions point the same way and they have the same examples as members. The
weights and the threshold are calibrated on planted modes and real trainings with known identities
(``benchmarks/diary.py``). The cosine has most of the weight: failures come and go, and two modes share some members by
chance (red nines and thick nines share the red, thick nines), while the directions of different modes of one class are
nearly orthogonal or opposite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.joining import ExampleKeys, join_examples

COSINE_WEIGHT = 0.8
"""Weight of the cosine in the similarity; the share of common members has the rest."""

SAME_MODE_SIMILARITY = 0.26
"""Minimum similarity of two modes that may be the same."""

CHANGE_LEVEL = 0.05
"""Significance level of the test whether a mode has grown or shrunk."""


@dataclass(frozen=True, eq=False)
class ModeSnapshot:
    """The examples of a failure mode in one analysis.

    Attributes:
        ids: (n,) int64, ascending: the analysed examples of the class.
        flagged: (n,) bool: the decision value is negative.
        failed: (n,) bool.
        digests: (n,) int64, digests of the images, by which examples are found again; None if they are unknown.
    """

    ids: IntArray
    flagged: BoolArray
    failed: BoolArray
    digests: IntArray | None = None

    @property
    def keys(self) -> ExampleKeys:
        """Keys of the examples."""
        return ExampleKeys(self.ids, self.digests)

    def take(self, rows: IntArray) -> ModeSnapshot:
        """Return the snapshot of some of the examples."""
        digests = None if self.digests is None else self.digests[rows]
        return ModeSnapshot(self.ids[rows], self.flagged[rows], self.failed[rows], digests)

    @property
    def members(self) -> BoolArray:
        """(n,) bool: the flagged failures."""
        return self.flagged & self.failed

    @property
    def size(self) -> int:
        """Number of members."""
        return int(np.count_nonzero(self.members))


def restrict_to_shared(one: ModeSnapshot, other: ModeSnapshot) -> tuple[ModeSnapshot, ModeSnapshot]:
    """Restrict two snapshots to the (s,) examples that both analyses have in common, in one order.

    They are joined by the digests of their images, or by id if a snapshot has none.

    >>> some = np.ones(3, dtype=bool)
    >>> mode, other = (ModeSnapshot(np.array(ids), some, some) for ids in ([1, 2, 3], [2, 3, 4]))
    >>> one, two = restrict_to_shared(mode, other)
    >>> one.ids.tolist(), two.ids.tolist()
    ([2, 3], [2, 3])
    """
    if one.keys.same_as(other.keys) and (one.digests is None or bool((one.digests != UNKNOWN_DIGEST).all())):
        return one, other
    rows, other_rows = join_examples(one.keys, other.keys)
    return one.take(rows), other.take(other_rows)


@dataclass(frozen=True)
class ModeSimilarity:
    """How similar two modes are.

    Attributes:
        cosine: Cosine of their directions, in [-1, 1].
        shared: Overlap coefficient: the common members as a share of the smaller set of members, among the examples
            that both analyses have in common. None where one of the sets is empty.
    """

    cosine: float
    shared: float | None

    @property
    def similarity(self) -> float:
        """Weighted mean of cosine and overlap, at most 1; the cosine alone where the overlap is undefined.

        >>> ModeSimilarity(0.5, 1.0).similarity, ModeSimilarity(0.5, None).similarity
        (0.6, 0.5)
        """
        if self.shared is None:
            return self.cosine
        return COSINE_WEIGHT * self.cosine + (1 - COSINE_WEIGHT) * self.shared


def mode_similarity(
    direction: NDArray[np.floating],
    snapshot: ModeSnapshot,
    other_direction: NDArray[np.floating],
    other_snapshot: ModeSnapshot,
) -> ModeSimilarity:
    """Compare two modes by their directions, (D,) float of unit length, and their members.

    >>> ids, failed = np.arange(4), np.ones(4, dtype=bool)
    >>> one = ModeSnapshot(ids, np.array([True, True, False, False]), failed)
    >>> two = ModeSnapshot(ids, np.array([False, True, True, True]), failed)
    >>> mode_similarity(np.array([1.0, 0.0]), one, np.array([0.6, 0.8]), two)
    ModeSimilarity(cosine=0.6, shared=0.5)
    """
    members, other_members = (mode.members for mode in restrict_to_shared(snapshot, other_snapshot))
    smaller = min(np.count_nonzero(members), np.count_nonzero(other_members))
    shared = float(np.count_nonzero(members & other_members) / smaller) if smaller else None
    cosine = float(np.clip(np.dot(direction, other_direction), -1.0, 1.0))  # rounding may exceed 1
    return ModeSimilarity(cosine, shared)


def match_modes(table: Sequence[Sequence[ModeSimilarity]]) -> list[tuple[int, int]]:
    """Match the modes of two analyses one to one such that the sum of similarities is largest.

    No pair has a similarity below :data:`SAME_MODE_SIMILARITY`.

    Args:
        table: Row i, column j: the similarity of mode i of one analysis and mode j of the other.

    Returns:
        Pairs (i, j), by i.

    >>> cosines = [[0.9, 0.8], [0.8, 0.1]]
    >>> match_modes([[ModeSimilarity(cosine, None) for cosine in row] for row in cosines])
    [(0, 1), (1, 0)]
    """
    if not table or not table[0]:
        return []
    similarity = np.array([[pair.similarity for pair in row] for row in table])
    possible = similarity >= SAME_MODE_SIMILARITY
    rows, columns = linear_sum_assignment(np.where(possible, similarity, 0.0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if possible[i, j]]


def membership_change(now: ModeSnapshot, then: ModeSnapshot) -> tuple[int, int]:
    """Return the numbers of members gained and lost, among the examples that both analyses have in common.

    >>> ids, yes = np.array([1, 2, 3]), np.ones(3, dtype=bool)
    >>> membership_change(ModeSnapshot(ids, yes, yes), ModeSnapshot(ids + 1, np.array([False, True, True]), yes))
    (1, 0)
    """
    members, previous = (mode.members for mode in restrict_to_shared(now, then))
    return int(np.count_nonzero(members & ~previous)), int(np.count_nonzero(previous & ~members))


def flagged_change(now: ModeSnapshot, then: ModeSnapshot) -> tuple[int, int]:
    """Return the numbers of failures gained and lost among the examples that were flagged *then*.

    The flagged slice is frozen, so that a bias which the next fit has moved is no change. Decision values are
    cross-fitted: whether an example was flagged does not depend on its own failure. If nothing has changed, a gain and
    a loss are therefore equally likely.

    >>> ids, yes, no = np.array([1, 2, 3]), np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    >>> flagged_change(ModeSnapshot(ids, no, yes), ModeSnapshot(ids, np.array([True, True, False]), no))
    (2, 0)
    """
    now, then = restrict_to_shared(now, then)
    gained, lost = now.failed & ~then.failed, then.failed & ~now.failed
    return int(np.count_nonzero(then.flagged & gained)), int(np.count_nonzero(then.flagged & lost))
