"""Effect of a pattern: how much more often the model errs on flagged examples, and how many failures are flagged.

A p-value says whether there is a pattern, not whether it matters: among many examples a tiny difference is significant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.stats.intervals import (
    difference_interval,
    effective_examples,
    share_intervals,
    wilson_interval,
)

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


class RateWithin(NamedTuple):
    """A rate that is averaged over classes, and the number of independent examples that it is worth."""

    rate: float
    effective: float


def rates_within_classes(
    part: BoolArray, outcome: BoolArray, labels: IntArray, sources: IntArray | None = None
) -> tuple[RateWithin, RateWithin]:
    """Return the rate of an outcome inside and outside of a part of the examples, compared within classes.

    A class of which n1 examples lie inside and n0 outside has the weight n1 n0 / (n1 + n0) in both rates, so classes
    that lie on one side have no influence, and neither has that error rates differ between classes.

    Args:
        part: (n,) bool.
        outcome: (n,) bool.
        labels: (n,) int >= 0, the classes.
        sources: (n,) int, sources of the examples; those of one source are not independent. None: each is its own.

    Returns:
        Two rates; NaN where no class has examples on both sides.

    Reference:
        Mantel and Haenszel, Statistical aspects of the analysis of data from retrospective studies of disease, 1959.

    >>> part, outcome = np.array([True, True, False, False, True]), np.array([True, False, False, False, True])
    >>> inside, outside = rates_within_classes(part, outcome, np.array([0, 0, 0, 0, 1]))
    >>> inside.rate, outside.rate
    (0.5, 0.0)
    """
    share_inside = (np.bincount(labels, part) / np.maximum(np.bincount(labels), 1))[labels]
    rates = []
    for side, share_of_other_side in ((part, 1 - share_inside), (~part, share_inside)):
        weight, mine = share_of_other_side[side], outcome[side]
        total = float(weight.sum())
        if total <= 0:
            rates.append(RateWithin(float("nan"), 0.0))
            continue
        effective = total**2 / float((weight**2).sum())
        if sources is not None:
            source = np.unique(sources[side], return_inverse=True)[1]
            effective *= float(effective_examples(mine.astype(np.int64), 2, source)[1]) / len(mine)
        rates.append(RateWithin(float((weight * mine).sum()) / total, effective))
    return rates[0], rates[1]


def measure_effect_within_classes(
    values: NDArray[np.floating], failed: BoolArray, labels: IntArray, sources: IntArray | None = None
) -> Effect:
    """Compare the error rates of flagged and unflagged examples of the same classes.

    Both rates are those of :func:`rates_within_classes`: flags that only tell hard classes from easy ones have no
    effect.

    Args:
        values: (n,) cross-fitted decision values. Examples with NaN are left out.
        failed: (n,) bool.
        labels: (n,) int >= 0, the classes.
        sources: (n,) int, sources of the examples. None: each is its own.

    >>> labels, failed = np.repeat([0, 1], 4), np.array([True, True, False, False, False, False, False, True])
    >>> effect = measure_effect_within_classes(np.array([-1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), failed, labels)
    >>> effect.flagged_error_rate, effect.unflagged_error_rate, effect.gain
    (1.0, 0.0, 2.0)
    """
    known = ~np.isnan(values)
    flagged, failed, labels = values[known] < 0, failed[known], labels[known]
    inside, outside = rates_within_classes(flagged, failed, labels, None if sources is None else sources[known])
    ends = [wilson_interval(one.rate * one.effective, one.effective) for one in (inside, outside) if one.effective]
    failures, covered = int(failed.sum()), int((failed & flagged).sum())
    return Effect(
        flagged=int(flagged.sum()),
        flagged_error_rate=inside.rate,
        unflagged_error_rate=outside.rate,
        difference=inside.rate - outside.rate,
        interval=difference_interval(inside.rate, ends[0], outside.rate, ends[1]) if len(ends) == 2 else (-1.0, 1.0),
        coverage=covered / failures if failures else float("nan"),
    )
