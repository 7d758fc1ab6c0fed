"""Error rate, error coverage and ALER: the numbers that a partition of a group of examples is judged by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_failures.core.arrays import as_mask, as_vector


def error_rate(failed: Any) -> float:
    """Return ER, the mean of failed over a cluster; NaN for an empty one.

    >>> error_rate([True, False, False, False])
    0.25
    """
    mask = as_mask(failed, "failed", len(failed))
    return float(mask.mean()) if len(mask) else math.nan


def error_coverage(members: Any, failed: Any) -> float:
    """Return EC, the share of all failures that lie in the cluster; NaN if nothing failed.

    Args:
        members: (n,) bool, whether an example belongs to the cluster.
        failed: (n,) bool.

    >>> error_coverage([True, True, False], [True, False, True])
    0.5
    """
    mask = as_mask(failed, "failed", len(failed))
    inside = as_mask(members, "members", len(mask))
    return float((mask & inside).sum() / mask.sum()) if mask.any() else math.nan


def average_leaf_error_rate(leaf_ids: Any, failed: Any) -> float:
    """Return ALER, the sum over leaves of ER(leaf) * EC(leaf): the error rate of the leaf that a typical failure is in.

    It is never below the base error rate, and some leaf has at least this error rate.

    Args:
        leaf_ids: (n,) int, the leaf of each example; the numbers need not be consecutive.
        failed: (n,) bool.

    Returns:
        A value in [0, 1]; NaN if nothing failed, because coverage is undefined then.

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
