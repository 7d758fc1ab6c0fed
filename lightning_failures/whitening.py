"""phi: how embeddings are standardised before a direction is sought in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_and_std", "phi"]

_CELLS_AT_ONCE = 1 << 20


def phi(embeddings: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[Any]:
    """Subtract the mean, divide by the standard deviation, scale to unit length.

    Args:
        embeddings: (N, D).
        mean: (D,) float32 or float64; its dtype is that of the result.
        std: (D,), 0 for a degenerate dimension, which then contributes 0.

    Returns:
        (N, D); rows of length 1, or 0 where nothing is left.

    >>> phi(np.array([[3.0, 4.0, 7.0]]), np.zeros(3), np.array([1.0, 1.0, 0.0]))
    array([[0.6, 0.8, 0. ]])
    """
    scale = np.divide(1.0, std, out=np.zeros_like(mean), where=std > 0)
    scaled = embeddings.astype(mean.dtype)
    scaled -= mean
    scaled *= scale
    length = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
    scaled *= np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)[:, None]
    return scaled


def mean_and_std(
    reference: NDArray[Any], order: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation (ddof 1), block by block, so that no copy of the whole is made.

    Args:
        reference: (M, D) of any float dtype.
        order: (M,) the order in which rows are summed: the last bit depends on it.

    Returns:
        (D,) and (D,) float64; a standard deviation of 0 where a dimension is constant up to rounding.
    """
    m, dim = reference.shape
    total, squares = np.zeros(dim), np.zeros(dim)
    size = max(2, _CELLS_AT_ONCE // max(dim, 1))
    centre = np.zeros(dim, dtype=np.float64 if reference.dtype == np.float64 else np.float32)
    for start in range(0, m, size):
        rows = slice(start, start + size) if order is None else order[start : start + size]
        block = reference[rows].astype(centre.dtype)
        if start == 0:  # sums of squares about a point that is near the mean lose no digits
            centre[:] = block.mean(axis=0, dtype=np.float64)
        block -= centre
        total += block.sum(axis=0)
        squares += np.square(block, out=block).sum(axis=0)
    mean = centre + total / max(m, 1)
    if m < 2:
        return mean, np.zeros(dim)
    std = np.sqrt(np.maximum(squares - total**2 / m, 0.0) / (m - 1))
    rounding = 2.0**-53 if centre.dtype == np.float64 else 2.0**-26
    return mean, np.where(std > rounding * np.abs(mean), std, 0.0)
