"""A fall of accuracy against the wobble of accuracy from one validation to the next, without any intervention.

One moment before an intervention began is no control: accuracy moves between epochs by itself, and of many later
moments one is low. So a fall is compared with how much the same training moved within each of the two phases, before
and since, and the chance of a false alarm is divided among all looks.

The method:

* *Level*: the mean of the last 3 validations before, and of the last 5 since.
* *Wobble*: the standard deviation of single validations within a phase. Before: the residuals of the best rising curve
  (isotonic regression), so that a training that still improves is not taken for one that wobbles; under a flat history
  their sum of squares is chi-squared with as many degrees of freedom as there are validations less steps of the curve.
  Since: the residuals within blocks of 5 validations, so that a late fall stays a fall. A history with fewer than 4
  degrees of freedom is filled up with a wobble of 0.08, so that only a huge fall counts early.
* *Test*: Student's, one-sided, of the difference of the two levels.
* *Looks*: the j-th look that the history alone can judge may use 0.03 * 6 / (pi j)^2 of error, those before it,
  which know the wobble least, 0.0005 each. With a single validation before, whose level is uncertain, it is 0.05
  instead of 0.03. All looks of a training together raise a false alarm in 2 to 3 of 100 trainings, with a single
  validation before in 4 (``benchmarks/rollback.py``).

An accuracy that still rises after the intervention began can hide harm, since what it would have been is unknown: only
forks can tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr  # type: ignore[import-untyped]

from lightning_failures.core.arrays import as_array
from lightning_failures.errors import DataError

LAST_BEFORE, LAST_SINCE = 3, 5
"""Validations whose mean is the level before and since."""

HISTORY_BEFORE, HISTORY_SINCE = 10, 20
"""Validations from which the wobble is estimated."""

_KNOWN_DF = 4  # degrees of freedom from which a history can judge alone
_ASSUMED = 0.08  # wobble that fills up a shorter history ...
_ASSUMED_DF = 10  # ... with this certainty for each missing degree of freedom
_ROUNDING = 1e-12  # equal means of other summands
_ERROR, _ERROR_OF_SINGLE = 0.03, 0.05
_ERROR_ASSUMED = 0.0005


@dataclass(frozen=True)
class Fall:
    """The fall of accuracy since an intervention began.

    Attributes:
        before: Level before.
        since: Level since.
        wobble: Standard deviation of the accuracy of single validations.
        p_value: Probability of such a fall, or a larger one, at this look without any change.
        allowed: The p-value below which the fall is one.
        looks: Number of validations since the intervention began.
    """

    before: float
    since: float
    wobble: float
    p_value: float
    allowed: float
    looks: int

    @property
    def is_significant(self) -> bool:
        """Whether the fall is larger than the wobble explains, with all looks so far taken into account."""
        return self.p_value < self.allowed


def measure_fall(before: Any, since: Any, *, looks: int | None = None) -> Fall:
    """Compare the accuracies since an intervention began with those before.

    Args:
        before: (B,) accuracies of the validations before, the oldest first; at least one, and the last 10 count.
        since: (k,) accuracies of the validations since, at least one; the last 20 count.
        looks: Number of validations since, if ``since`` holds only the last ones. Default: k.

    Raises:
        DataError: There is no accuracy, or one is not finite.

    >>> before = [0.71, 0.69, 0.70, 0.72]
    >>> [measure_fall(before, since).is_significant for since in ([0.69, 0.71, 0.68], [0.59, 0.61, 0.60])]
    [False, True]
    """
    earlier, later = _accuracies(before, "before"), _accuracies(since, "since")
    looks = len(later) if looks is None else looks
    earlier, later = earlier[-HISTORY_BEFORE:], later[-HISTORY_SINCE:]

    # wobble: residuals of a rising curve before, and within blocks since
    squares, df_before = _around_rising_curve(earlier)
    for stop in range(len(later), 0, -LAST_SINCE):
        block = later[max(stop - LAST_SINCE, 0) : stop]
        squares += float(((block - block.mean()) ** 2).sum())
    df = df_before + _df_of_blocks(len(later))
    missing = max(_KNOWN_DF - df, 0)
    wobble = math.sqrt((squares + missing * _ASSUMED**2) / (df + missing))

    # test of the difference of levels
    level_before, level_since = earlier[-LAST_BEFORE:], later[-LAST_SINCE:]
    fall = float(level_before.mean() - level_since.mean())
    stderr = wobble * math.sqrt(1 / len(level_before) + 1 / len(level_since))
    statistic = math.inf if stderr == 0 else fall / stderr
    p_value = float(stdtr(df + _ASSUMED_DF * missing, -statistic)) if fall > 0 else 1.0
    allowed = _ERROR_ASSUMED
    if not missing:
        uninformed = sum(df_before + _df_of_blocks(k) < _KNOWN_DF for k in range(1, min(looks, HISTORY_SINCE) + 1))
        error = _ERROR if len(earlier) > 1 else _ERROR_OF_SINGLE
        allowed = error * 6 / (math.pi * (looks - uninformed)) ** 2
    return Fall(float(level_before.mean()), float(level_since.mean()), wobble, p_value, allowed, looks)


def _accuracies(values: Any, name: str) -> NDArray[np.float64]:
    array = np.asarray(as_array(values), dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise DataError(f"measure_fall: {name} must hold at least one accuracy, all finite; got {array}.")
    return array


def _df_of_blocks(size: int) -> int:
    """Return the degrees of freedom within blocks of ``LAST_SINCE`` of some validations."""
    return size - math.ceil(size / LAST_SINCE)


def _around_rising_curve(values: NDArray[np.float64]) -> tuple[float, int]:
    """Return the sum of squares around the isotonic regression, and its degrees of freedom.

    >>> _around_rising_curve(np.array([1.0, 2.0, 4.0])), _around_rising_curve(np.array([1.0, 4.0, 2.0]))
    ((0.0, 0), (2.0, 1))
    """
    steps: list[NDArray[np.float64]] = []  # pool adjacent violators
    for value in values:
        steps.append(np.array([value]))
        while len(steps) > 1 and steps[-2].mean() >= steps[-1].mean() - _ROUNDING:
            last = steps.pop()
            steps[-1] = np.concatenate([steps[-1], last])
    squares = sum(float(((step - step.mean()) ** 2).sum()) for step in steps)
    return squares, len(values) - len(steps)
