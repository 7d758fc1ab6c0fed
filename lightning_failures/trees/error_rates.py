"""Error rate, error coverage and average leaf error rate (ALER) of a partition of a group of examples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_failures.core.arrays import as_mask, as_vector


def error_rate(failed: Any) -> float:
    """Return ER, the share of failures in a cluster; NaN for an empty cluster.

    >>> error_rate([True, False, False, False])
    0.25
    """
    mask = as_mask(failed, "failed", len(failed))
    return float(mask.mean()) if len(mask) else math.nan


def error_coverage(members: Any, failed: Any) -> float:
    """Return EC, the share of all failures that are in a cluster; NaN without failures.

    Args:
        members: (n,) bool, whether each example belongs to the cluster.
        failed: (n,) bool.

    >>> error_coverage([True, True, False], [True, False, True])
    0.5
    """
    mask = as_mask(failed, "failed", len(failed))
    inside = as_mask(members, "members", len(mask))
    return float((mask & inside).sum() / mask.sum()) if mask.any() else math.nan


def average_leaf_error_rate(leaf_ids: Any, failed: Any) -> float:
    """Return ALER, the sum over leaves of ER(leaf) * EC(leaf): the error rate of the leaf of a typical failure.

    ALER is never below the base error rate, and at least one leaf has this error rate or a higher one.

    Args:
        leaf_ids: (n,) int, the leaf of each example; the numbers need not be consecutive.
        failed: (n,) bool.

    Returns:
        A value in [0, 1]; NaN without failures, where the error coverage is undefined.

    >>> average_leaf_error_rate([0, 0, 1, 1], [True, True, True, False])  # 1 * 2/3 + 1/2 * 1/3
    0.8333333333333334
    """
    mask = as_mask(failed, "failed", len(failed))
    leaves = as_vector(leaf_ids, "leaf_ids", len(mask))
    if not mask.any():
        return math.nan
    _, member = np.unique(leaves, return_inverse=True)
    failures, sizes = np.bincount(member, weights=mask), np.bincount(member)
    return float((failures / sizes * failures).sum() / failures.sum())


def coverage_at_rate(rate: float | None, size: int, failures: int) -> float | None:
    """Return the error coverage of a cluster with a given error rate, at most 1; None without a rate or failures.

    Args:
        rate: Error rate of the cluster, such as a held-out one.
        size: Number of examples in the cluster.
        failures: Number of failures in the whole group.

    >>> coverage_at_rate(0.5, 20, 40), coverage_at_rate(None, 20, 40)
    (0.25, None)
    """
    return None if rate is None or not failures else min(rate * size / failures, 1.0)
