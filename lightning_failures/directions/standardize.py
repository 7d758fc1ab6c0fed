"""phi: how embeddings are standardised before a direction is sought in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CELLS_AT_ONCE = 1 << 20


def standardize(embeddings: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[Any]:
    """Subtract the mean, divide by the standard deviation, scale to unit length.

    Args:
        embeddings: (N, D).
        mean: (D,) float32 or float64; its dtype is that of the result.
        std: (D,), 0 for a degenerate dimension, which then contributes 0.

    Returns:
        (N, D); rows of length 1, or 0 where nothing is left.

    >>> standardize(np.array([[3.0, 4.0, 7.0]]), np.zeros(3), np.array([1.0, 1.0, 0.0]))
    array([[0.6, 0.8, 0. ]])
    """
    scale = np.divide(1.0, std, out=np.zeros_like(mean), where=std > 0)
    scaled = embeddings.astype(mean.dtype)
    scaled -= mean
    scaled *= scale
    length = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
    scaled *= np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)[:, None]
    return scaled


@dataclass(frozen=True)
class Moments:
    """Number, mean and spread of embeddings, from which those of several parts can be told.

    Attributes:
        count: M, how many embeddings.
        mean: (D,) float64.
        squares: (D,) float64, the sum of squared distances from the mean.
        rounding: Relative precision of what was summed.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    rounding: float

    @classmethod
    def of(cls, embeddings: NDArray[Any], order: NDArray[np.int64] | None = None) -> Moments:
        """Sum block by block, so that no copy of the whole is made.

        Args:
            embeddings: (M, D) of any float dtype.
            order: (M,) the order in which rows are summed: the last bit depends on it.
        """
        m, dim = embeddings.shape
        total, squares = np.zeros(dim), np.zeros(dim)
        size = max(2, _CELLS_AT_ONCE // max(dim, 1))
        centre = np.zeros(dim, dtype=np.float64 if embeddings.dtype == np.float64 else np.float32)
        for start in range(0, m, size):
            rows = slice(start, start + size) if order is None else order[start : start + size]
            block = embeddings[rows].astype(centre.dtype)
            if start == 0:  # sums of squares about a point that is near the mean lose no digits
                centre[:] = block.mean(axis=0, dtype=np.float64)
            block -= centre
            total += block.sum(axis=0)
            squares += np.square(block, out=block).sum(axis=0)
        rounding = 2.0**-53 if centre.dtype == np.float64 else 2.0**-26
        return cls(m, centre + total / max(m, 1), squares - total**2 / max(m, 1), rounding)

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Those of all parts together.

        Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
        1979, equation 2.1.
        """
        whole, *others = [part for part in parts if part.count] or parts
        for part in others:
            count, apart = whole.count + part.count, part.mean - whole.mean
            whole = cls(
                count,
                whole.mean + apart * (part.count / count),
                whole.squares + part.squares + apart**2 * (whole.count * part.count / count),
                max(whole.rounding, part.rounding),
            )
        return whole

    @property
    def std(self) -> NDArray[np.float64]:
        """(D,) with ddof 1; 0 where a dimension is constant up to rounding, or where there are less than 2 rows."""
        if self.count < 2:
            return np.zeros_like(self.mean)
        std = np.sqrt(np.maximum(self.squares, 0.0) / (self.count - 1))
        return np.asarray(np.where(std > self.rounding * np.abs(self.mean), std, 0.0))


def mean_and_std(
    embeddings: NDArray[Any], order: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and standard deviation (D,) of embeddings (M, D); see :class:`Moments`."""
    moments = Moments.of(embeddings, order)
    return moments.mean, moments.std
