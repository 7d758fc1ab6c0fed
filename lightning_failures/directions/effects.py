"""Effect of a pattern: how much more often the model errs on flagged examples, and how many failures are flagged.

A p-value says whether there is a pattern, not whether it matters: among many examples a tiny difference is significant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.stats.intervals import difference_interval, share_intervals

Strength = Literal["none", "weak", "clear", "strong"]

CLEAR, STRONG = 0.1, 0.3
"""Lower ends of the interval of the effect from which a pattern is clear, and from which it is strong."""


@dataclass(frozen=True)
class Effect:
    """Error rates of the flagged and the unflagged examples of a class, by held-out decision values.

    Attributes:
        flagged: Number of flagged examples.
        flagged_error_rate: Share of the flagged examples that failed; NaN if none is flagged.
        unflagged_error_rate: Share of the unflagged examples that failed; NaN if all are flagged.
        difference: The effect, ``flagged_error_rate - unflagged_error_rate``.
        interval: Its 95 % interval; (-1, 1) where the effect is undefined.
        coverage: Share of the failures that are flagged; NaN without failures.
    """

    flagged: int
    flagged_error_rate: float
    unflagged_error_rate: float
    difference: float
    interval: tuple[float, float]
    coverage: float

    @property
    def gain(self) -> float:
        """What fixing gains: the failures that vanish if the flagged fail as the others do; NaN without effect."""
        return max(self.difference, 0.0) * self.flagged if np.isfinite(self.difference) else float("nan")

    @property
    def strength(self) -> Strength:
        """Strength of a pattern with this effect, by the lower end of the interval."""
        low = self.interval[0]
        return "strong" if low >= STRONG else "clear" if low >= CLEAR else "weak"


def measure_effect(
    values: NDArray[np.floating],
    failed: BoolArray,
    sources: IntArray | None = None,
    *,
    interval: tuple[float, float] | None = None,
) -> Effect:
    """Compare the error rates of flagged and unflagged examples.

    Args:
        values: (n,) cross-fitted decision values of the examples of a class. Examples with NaN are left out.
        failed: (n,) bool.
        sources: (n,) int, sources of the examples; those of one source are not independent. None: each is its own.
        interval: The interval of the effect, if it is already known. Default: computed.

    >>> effect = measure_effect(np.array([-1.0, -1.0, 1.0, 1.0, 1.0]), np.array([True, True, True, False, False]))
    >>> effect.flagged_error_rate, round(effect.unflagged_error_rate, 2), round(effect.coverage, 2), effect.strength
    (1.0, 0.33, 0.67, 'weak')
    """
    known = ~np.isnan(values)
    flagged, failed = values[known] < 0, failed[known]
    sources = None if sources is None else sources[known]
    rates = [float(failed[part].mean()) if part.any() else float("nan") for part in (flagged, ~flagged)]
    if interval is None:
        interval = _interval(flagged, failed, sources)
    failures, covered = int(failed.sum()), int((failed & flagged).sum())
    return Effect(
        flagged=int(flagged.sum()),
        flagged_error_rate=rates[0],
        unflagged_error_rate=rates[1],
        difference=rates[0] - rates[1],
        interval=interval,
        coverage=covered / failures if failures else float("nan"),
    )


def _interval(flagged: BoolArray, failed: BoolArray, sources: IntArray | None) -> tuple[float, float]:
    """Return the interval of the difference of the error rates; (-1, 1) if all or none are flagged."""
    if not flagged.any() or flagged.all():
        return -1.0, 1.0
    rates, ends = [], []
    for part in (flagged, ~flagged):
        mine = None if sources is None else np.unique(sources[part], return_inverse=True)[1]
        rates.append(float(failed[part].mean()))
        ends.append(share_intervals(failed[part].astype(np.int64), 2, mine)[1])
    return difference_interval(rates[0], ends[0], rates[1], ends[1])
