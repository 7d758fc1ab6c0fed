"""Multiple testing, intervals of a rate, and the sign test, shared by directions, trees and reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit  # type: ignore[import-untyped]

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.errors import DataError


def benjamini_hochberg(p_values: Any, level: float = 0.05) -> BoolArray:
    """Return which of many tests are significant at a false discovery rate of at most ``level``.

    ``scipy.stats.false_discovery_control`` is not used because it decides ties differently: it compares p * K / rank
    with the level, where the rule of the paper, p <= level * rank / K, rounds otherwise. P-values of permutation tests
    are ratios of integers and meet the bound exactly at times: of 17,792 such cases 606 came out differently.

    Args:
        p_values: (K,) in [0, 1]. NaN marks a test that was not made: it is never significant and does not count.
        level: False discovery rate in (0, 1).

    Returns:
        (K,) bool.

    Reference:
        Benjamini and Hochberg, Controlling the False Discovery Rate, 1995.

    >>> benjamini_hochberg([0.001, 0.2, 0.03, float("nan")])
    array([ True, False,  True, False])
    """
    p = as_array(p_values).astype(np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    by_p_value = tested[np.argsort(p[tested], kind="stable")]
    rank = np.arange(1, len(tested) + 1)
    below = np.flatnonzero(p[by_p_value] <= level * rank / max(len(tested), 1))
    significant = np.zeros(p.shape, dtype=np.bool_)
    if len(below):
        significant[by_p_value[: below[-1] + 1]] = True
    return significant


def holm_adjusted(p_values: Any) -> FloatArray:
    """Return p-values corrected for their number: those below a level are all true with a probability of 1 - level.

    Args:
        p_values: (K,) in [0, 1].

    Returns:
        (K,) in [0, 1], none smaller than its p-value.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> [round(p, 3) for p in holm_adjusted([0.01, 0.04, 0.03]).tolist()]
    [0.03, 0.06, 0.06]
    """
    p = as_array(p_values).astype(np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def wilson_interval(failures: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a rate, by default at 95 %.

    Unlike rate +- z standard errors, it stays inside [0, 1] and is not empty at 0 or n failures. For ``n == 0`` it is
    (0, 1). Counts may be fractional, such as effective numbers of clustered examples, which
    ``scipy.stats.binomtest`` does not accept.

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


def mean_interval(values: Any, level: float = 0.9) -> tuple[float, float] | None:
    """Return Student's interval of a mean over independent values, such as seeds; None for fewer than two values.

    Args:
        values: (n,) float.
        level: Coverage of the interval in (0, 1).

    >>> mean_interval([1.0]), [round(end, 2) for end in mean_interval([0.0, 1.0])]
    (None, [-2.66, 3.66])
    """
    x = as_array(values).astype(np.float64)
    if len(x) < 2:
        return None
    half = float(stdtrit(len(x) - 1, (1 + level) / 2)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(x.mean()) - half, float(x.mean()) + half


def share_intervals(codes: IntArray, size: int, sources: IntArray | None = None) -> list[tuple[float, float]]:
    """Return the 95 % interval of the share of each value 0 ... ``size`` - 1 among n examples.

    It is Wilson's interval. Examples of one source are not independent, so with ``sources`` it is taken at the
    effective number of examples: n over the design effect.

    Args:
        codes: (n,) int, the value of each example.
        size: Number of values.
        sources: (n,) int, numbers of the sources, from 0. None: every example is its own source.

    >>> [tuple(round(end, 2) for end in ends) for ends in share_intervals(np.array([0, 0, 1, 1]), 2)]
    [(0.15, 0.85), (0.15, 0.85)]
    """
    n = len(codes)
    share = np.bincount(codes, minlength=size) / max(n, 1)
    effective = effective_examples(codes, size, sources)
    return [wilson_interval(p * m, m) for p, m in zip(share.tolist(), effective.tolist(), strict=True)]


def effective_examples(codes: IntArray, size: int, sources: IntArray | None = None) -> NDArray[np.float64]:
    """Return the effective number of examples for the share of each value 0 ... ``size`` - 1: n over the design effect.

    Args:
        codes: (n,) int, the value of each example.
        size: Number of values.
        sources: (n,) int, numbers of the sources, from 0. None: every example is its own source.

    Returns:
        (size,) at most n. Where no variance between sources can be estimated, it is the number of sources.

    >>> effective_examples(np.array([0, 0, 1, 1]), 2), effective_examples(np.array([0, 0, 1]), 2, np.array([0, 0, 0]))
    (array([4., 4.]), array([1., 1.]))
    """
    n = len(codes)
    if sources is None or not n:
        return np.full(size, float(n))
    share = np.bincount(codes, minlength=size) / n
    n_sources = int(sources.max()) + 1
    table = np.bincount(sources * size + codes, minlength=n_sources * size).reshape(n_sources, size)
    # variance of the share between sources, from the deviation of each source from its expected count
    deviation = table - table.sum(axis=1, keepdims=True) * share
    variance = (deviation**2).sum(axis=0) / n**2 * n_sources / max(n_sources - 1, 1)
    variance_of_one = share * (1 - share)
    # without a variance to estimate, the effective number of examples is the number of sources
    estimable = (variance_of_one > 0) & (variance > 0) & (n_sources > 1)
    n_effective = np.minimum(n, variance_of_one / np.where(estimable, variance, 1))
    return np.where(estimable, n_effective, n_sources)


def difference_interval(
    first: float, of_first: tuple[float, float], second: float, of_second: tuple[float, float]
) -> tuple[float, float]:
    """Return the interval of the difference ``first - second`` of two rates of separate examples.

    Args:
        first: A rate.
        of_first: Its interval.
        second: Another rate.
        of_second: Its interval, at the same level.

    Reference:
        Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10.

    >>> low, high = difference_interval(56 / 70, wilson_interval(56, 70), 48 / 80, wilson_interval(48, 80))
    >>> round(low, 4), round(high, 4)  # Newcombe, table II, example (a)
    (0.0524, 0.3339)
    """
    difference = first - second
    low = difference - math.hypot(first - of_first[0], of_second[1] - second)
    high = difference + math.hypot(of_first[1] - first, second - of_second[0])
    return low, high


def paired_difference_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two rates of the same examples, the first minus the second.

    Args:
        both: Number of examples that count for both rates.
        only_first: Number of examples that count for the first rate only.
        only_second: Number of examples that count for the second rate only.
        neither: Number of examples that count for none.

    Returns:
        The ends, in [-1, 1]; without examples (-1, 1).

    Reference:
        Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
        1998, method 10.

    >>> low, high = paired_difference_interval(1, 1, 7, 12)
    >>> round(low, 3), round(high, 3)
    (-0.507, -0.026)
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return -1.0, 1.0
    first, second = (both + only_first) / n, (both + only_second) / n
    of_first, of_second = wilson_interval(both + only_first, n), wilson_interval(both + only_second, n)
    margins = math.prod((both + only_first, only_second + neither, both + only_second, only_first + neither))
    determinant = both * neither - only_first * only_second
    corrected = max(determinant - n / 2, 0.0) if determinant > 0 else float(determinant)
    correlation = corrected / math.sqrt(margins) if margins else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))

    low = first - second - half(first - of_first[0], of_second[1] - second)
    high = first - second + half(of_first[1] - first, second - of_second[0])
    return low, high


def sign_test(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: gains and losses are equally likely.

    The test treats the examples that were gained and lost as independent.

    >>> sign_test(0, 6), sign_test(3, 3), sign_test(0, 0)
    (0.03125, 1.0, 1.0)
    """
    return min(1.0, 2.0 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
