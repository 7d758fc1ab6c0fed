"""Agreement of two binary judgements, and of values with outcomes, beyond chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cohen_kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Return Cohen's kappa of two binary judgements, the agreement beyond chance.

    Args:
        one: (n,) bool.
        other: (n,) bool.

    Returns:
        At most 1; 0 means agreement by chance. None if both judgements are constant and equal, where kappa is
        undefined.

    Reference:
        Cohen, A Coefficient of Agreement for Nominal Scales, 1960.

    >>> cohen_kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5
    """
    by_chance = one.mean() * other.mean() + (~one).mean() * (~other).mean()
    return None if by_chance >= 1 else float(((one == other).mean() - by_chance) / (1 - by_chance))


def positive_agreement(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the positive agreement of two binary judgements: how many of the positives of one are those of the other.

    It is the number of common positives over the mean number of positives. Of independent judgements with equal shares
    of positives it is that share, on average.

    Args:
        one: (n,) bool.
        other: (n,) bool.

    Returns:
        A value in [0, 1]; NaN without positives.

    Reference:
        Cicchetti and Feinstein, High agreement but low kappa: II. Resolving the paradoxes, 1990.

    >>> positive_agreement(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.6666666666666666
    """
    positives = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / positives if positives else float("nan")


def auc(values: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: the probability that a positive example has the larger value.

    Args:
        values: (n,) numbers; examples with NaN are left out.
        positive: (n,) bool.

    Returns:
        A value in [0, 1], where ties count half; NaN without positive or without negative examples.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True]))
    0.875
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # slow to import

    known = ~np.isnan(values)
    positive = positive[known]
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not (n_positive and n_negative):
        return float("nan")
    ranks = float(rankdata(values[known])[positive].sum())
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
