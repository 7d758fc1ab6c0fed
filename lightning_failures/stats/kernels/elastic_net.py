"""Coordinate descent on a quadratic model with an elastic net penalty, by coordinates and by groups.

Both minimise g . d + scale / 2 * d'Hd + l1 * |w + d| + l2 / 2 * |w + d|^2 over d. After a sweep over all coordinates,
sweeps visit those that are not zero until they settle; then all are visited again.

Source: Friedman, Hastie and Tibshirani, Regularization Paths for Generalized Linear Models via Coordinate Descent,
Journal of Statistical Software, 2010, sections 2.1 and 2.2 (covariance updates).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled


@compiled
def descend(gram: Any, gradient: Any, weight: Any, scale: Any, l1: Any, l2: Any, tolerance: Any, sweeps: Any) -> None:
    """Move ``weight`` to the minimum; a coordinate that is not penalised away is touched by soft thresholding.

    Args:
        gram: (a, a) float32, H, symmetric with a positive diagonal.
        gradient: (a,) float32, g; overwritten.
        weight: (a,) float32, w; overwritten by w + d, exactly 0 where the penalty wins.
        scale: float32, factor of H.
        l1: float32, weight of the sum of absolute values.
        l2: float32, weight of half the sum of squares.
        tolerance: float32; the descent ends when no coordinate of the gradient moves by more in a sweep.
        sweeps: Maximum number of sweeps.
    """
    size = len(gradient)
    support = np.empty(size, np.int64)
    length, whole = 0, True
    for _ in range(sweeps):
        largest = np.float32(0)
        kept = 0
        for t in range(size if whole else length):
            j = t if whole else support[t]
            curvature = scale * gram[j, j]
            pull = curvature * weight[j] - gradient[j]
            new = np.float32(0)
            if pull > l1:
                new = (pull - l1) / (curvature + l2)
            elif pull < -l1:
                new = (pull + l1) / (curvature + l2)
            if new != weight[j]:
                move = scale * (new - weight[j])
                weight[j] = new
                for i in range(size):
                    gradient[i] += move * gram[j, i]
                largest = max(largest, abs(move) * gram[j, j])
            if whole and new != 0:
                support[kept] = j
                kept += 1
        if whole:
            length = kept
        if largest <= tolerance:
            if whole:
                break
            whole = True
        else:
            whole = False


@compiled
def descend_groups(
    grams: Any, gradient: Any, weight: Any, scale: Any, l1: Any, l2: Any, tolerance: Any, sweeps: Any
) -> None:
    """Move the weights of all classes to the minimum; a feature is a group: |w| is the sum of its lengths over classes.

    The curvature of a group is bounded by that of its steepest class, so that the group has a closed form.

    Args:
        grams: (K, a, a) float32, H of each class.
        gradient: (K, a) float32; overwritten.
        weight: (K, a) float32; overwritten by w + d.
        scale: float32, factor of H.
        l1: float32, weight of the sum of lengths.
        l2: float32, weight of half the sum of squares.
        tolerance: float32, as in :func:`descend`.
        sweeps: Maximum number of sweeps.
    """
    classes, size = gradient.shape
    pull = np.empty(classes, np.float32)
    for _ in range(sweeps):
        largest = np.float32(0)
        for j in range(size):
            steepest = np.float32(0)
            for k in range(classes):
                steepest = max(steepest, grams[k, j, j])
            curvature = scale * steepest
            square = np.float32(0)
            for k in range(classes):
                pull[k] = curvature * weight[k, j] - gradient[k, j]
                square += pull[k] * pull[k]
            length = np.sqrt(square)
            factor = (1 - l1 / length) / (curvature + l2) if length > l1 else np.float32(0)
            for k in range(classes):
                new = factor * pull[k]
                if new != weight[k, j]:
                    move = scale * (new - weight[k, j])
                    weight[k, j] = new
                    for i in range(size):
                        gradient[k, i] += move * grams[k, j, i]
                    largest = max(largest, abs(move) * steepest)
        if largest <= tolerance:
            break
