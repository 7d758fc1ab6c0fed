"""What was picked from a pool, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClassPicks:
    """What was picked from one class, and out of how much.

    Attributes:
        ids: (n,) int64, the best first.
        values: (n,) float32, what they were ranked by: decision values, confidences, or a hash in [0, 1) for
            ``"random"``.
        seen: Rows of this class in the pool.
        eligible: Of these, the rows that may be picked: their value is known and, for ``"flagged_confidence"``, they
            are flagged; copies of training images are not among them.
        in_training: Exact copies of training images.
        copies: Exact copies of one another among the candidates that were kept, less the one that counts.
        near_duplicates: Candidates better than the last pick that were too similar to a training image or to an
            earlier pick.
        suspected: Candidates that were excluded because their label is probably wrong.
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
    shortfall: str | None = None


@dataclass(frozen=True, eq=False)
class Picks:
    """What was picked from a pool.

    Attributes:
        classes: Class -> its picks, ascending; classes that were asked for and are absent too.
        seen: Rows of the pool, of any class.
    """

    classes: Mapping[int, ClassPicks]
    seen: int

    @property
    def ids(self) -> Tensor:
        """(n,) int64: all picks, class by class."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *(c.ids for c in self.classes.values())])

    @property
    def labels(self) -> Tensor:
        """(n,) int64: the classes of :attr:`ids`."""
        return torch.tensor([label for label, c in self.classes.items() for _ in c.ids.tolist()], dtype=torch.int64)

    @property
    def shortfalls(self) -> dict[int, str]:
        """Class -> why it has fewer than k picks."""
        return {label: c.shortfall for label, c in self.classes.items() if c.shortfall is not None}
