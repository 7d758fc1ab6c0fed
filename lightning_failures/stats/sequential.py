"""Sequential Monte Carlo p-values, which stop drawing where nothing is to be found.

Source: Besag and Clifford, Sequential Monte Carlo p-values, Biometrika 78, 1991.
"""

from __future__ import annotations

import numpy as np

from lightning_failures.core.types import BoolArray

ENOUGH = 50
"""Number of permutations as extreme as the observed labels after which a test stops: then p exceeds 0.05 of 999."""


def enough_of(permutations: int) -> int:
    """Return after how many extreme ones of P permutations a test can stop without a change of any p-value up to 0.05.

    >>> enough_of(999), enough_of(1999)    # 100 / 1999 > 0.05
    (50, 100)
    """
    return max(ENOUGH, permutations // 20 + 1)


class SequentialTest:
    """Counts permutations that are as extreme as what was observed, until there are enough of them.

    Where the last of ``enough`` extreme ones is permutation number n, p = enough / n; where all P permutations hold
    fewer, p = (1 + number) / (1 + P). If nothing is to be found, P(p <= v) is v for every value v that p can take.
    Before the test is decided, ``enough`` may be raised for more permutations than were planned.

    >>> test = SequentialTest(enough=2)
    >>> test.add(np.array([True, False])), test.add(np.array([False, True, False])), test.p_value
    (False, True, 0.5)
    """

    def __init__(self, enough: int = ENOUGH) -> None:
        self.enough = enough
        self._hits = self._drawn = 0

    @property
    def decided(self) -> bool:
        """Whether there are enough extreme permutations."""
        return self._hits >= self.enough

    def add(self, extreme: BoolArray) -> bool:
        """Count more permutations, (P_i,) bool whether each is extreme, and return whether there are now enough."""
        if not self.decided:
            hits = self._hits + np.cumsum(extreme)
            if len(hits) and hits[-1] >= self.enough:
                self._drawn += int(np.searchsorted(hits, self.enough)) + 1
                self._hits = self.enough
            else:
                self._drawn += len(extreme)
                self._hits = int(hits[-1]) if len(hits) else self._hits
        return self.decided

    @property
    def p_value(self) -> float:
        """The p-value of the permutations so far, in (0, 1]."""
        return self._hits / self._drawn if self.decided else (1 + self._hits) / (1 + self._drawn)
