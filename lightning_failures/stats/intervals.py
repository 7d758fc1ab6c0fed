"""Three small pieces of statistics that directions, trees and reports share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr  # type: ignore[import-untyped]

from lightning_failures.core.arrays import as_array
from lightning_failures.errors import DataError


def benjamini_hochberg(p_values: Any, level: float = 0.05) -> NDArray[np.bool_]:
    """Say which of many tests hold when the expected share of false discoveries may be at most ``level``.

    Args:
        p_values: (K,) in [0, 1]. NaN stands for a test that was not made: it holds never and does not count.
        level: False discovery rate in (0, 1).

    Returns:
        (K,) bool.

    Reference:
        Benjamini and Hochberg, Controlling the False Discovery Rate, 1995.

    >>> benjamini_hochberg([0.001, 0.2, 0.03, float("nan")])
    array([ True, False,  True, False])
    """
    p = as_array(p_values).astype(np.float64)
    made = np.flatnonzero(~np.isnan(p))
    holds = np.zeros(p.shape, dtype=np.bool_)
    ranked = made[np.argsort(p[made], kind="stable")]
    below = np.flatnonzero(p[ranked] <= level * np.arange(1, len(ranked) + 1) / max(len(ranked), 1))
    if len(below):
        holds[ranked[: below[-1] + 1]] = True
    return holds


def wilson_interval(failures: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a rate, by default at 95 %.

    Unlike rate +- z standard errors it stays inside [0, 1] and is not empty at 0 or n failures. With ``n == 0`` nothing
    is known: (0, 1). Counts may be fractional: effective numbers of clustered examples.

    >>> low, high = wilson_interval(0, 10)
    >>> low, round(high, 3)
    (0.0, 0.278)
    """
    if not 0 <= failures <= n:
        raise DataError(f"failures must lie between 0 and n={n}, got {failures}")
    if n == 0:
        return 0.0, 1.0
    rate = failures / n
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if failures == 0 else (centre - half) / scale
    high = 1.0 if failures == n else (centre + half) / scale
    return low, high


def normal_tail(z: float) -> float:
    """Return the probability that a standard normal variable exceeds ``z``.

    >>> round(normal_tail(1.645), 3)
    0.05
    """
    return 0.5 * math.erfc(z / math.sqrt(2))


def sign_test(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of "an example comes as likely as it goes" (McNemar's test).

    It takes the examples that came and went as independent of each other.

    >>> sign_test(0, 6), sign_test(3, 3), sign_test(0, 0)
    (0.03125, 1.0, 1.0)
    """
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
