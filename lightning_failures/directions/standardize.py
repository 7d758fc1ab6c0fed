"""phi: the standardization of embeddings before a direction is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_rows, widened
from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.errors import DataError

_CELLS_AT_ONCE = 1 << 20
_SMALL_SQUARES = 1e-25  # sums of squares of float32 below this may have lost terms
_SMALL_LENGTH = 1e-15  # lengths of rows below this may have lost coordinates


def standardize(embeddings: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[Any]:
    """Apply phi: subtract the mean, divide by the standard deviation, scale to unit length.

    Args:
        embeddings: (N, D).
        mean: (D,) float32 or float64; the result has the same dtype.
        std: (D,); 0 for a degenerate dimension, which then contributes 0.

    Returns:
        (N, D), rows of length 1; a row that equals the mean is 0.

    >>> standardize(np.array([[3.0, 4.0, 7.0]]), np.zeros(3), np.array([1.0, 1.0, 0.0]))
    array([[0.6, 0.8, 0. ]])
    """
    scale = np.divide(1.0, std, out=np.zeros_like(mean), where=std > 0)
    scaled = widened(embeddings, mean.dtype)
    scaled -= mean
    scaled *= scale
    length = _lengths(scaled)
    extreme = ~(np.isfinite(length) & (length > _SMALL_LENGTH))
    if extreme.any():  # squares exceed the range of the dtype, or fall below it: the largest coordinate becomes 1
        largest = np.abs(scaled[extreme]).max(axis=1, initial=0)
        scaled[extreme] *= np.divide(1.0, largest, out=np.zeros_like(largest), where=largest > 0)[:, None]
        length[extreme] = _lengths(scaled[extreme])
    scaled *= np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)[:, None]
    return scaled


def _lengths(rows: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows)))


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squares of embeddings, from which the moments of several parts can be merged.

    Attributes:
        count: M, the number of embeddings.
        mean: (D,) float64.
        squares: (D,) float64, the sum of squared distances from the mean.
        rounding: Relative precision of the numbers that were summed.
    """

    count: int
    mean: FloatArray
    squares: FloatArray
    rounding: float

    @classmethod
    def of(cls, embeddings: NDArray[Any], order: IntArray | None = None) -> Moments:
        """Return the moments of embeddings, summed block by block so that the whole is never copied.

        Args:
            embeddings: (M, D) of any float dtype.
            order: (M,) the order in which rows are summed; the last bit depends on it. Default: as they come.
        """
        m, dim = embeddings.shape
        total, squares = np.zeros(dim), np.zeros(dim)
        size = max(2, _CELLS_AT_ONCE // max(dim, 1))
        centre = np.zeros(dim, dtype=np.float64 if embeddings.dtype == np.float64 else np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, m, size):
                rows = slice(start, start + size) if order is None else order[start : start + size]
                block = embeddings[rows].astype(centre.dtype)
                if start == 0:  # sums of squares around a point near the mean lose no digits
                    centre[:] = block.mean(axis=0, dtype=np.float64)
                block -= centre
                total += block.sum(axis=0)
                squares += np.square(block, out=block).sum(axis=0)
        rounding = 2.0**-53 if centre.dtype == np.float64 else 2.0**-26
        with np.errstate(over="ignore", invalid="ignore"):
            mean, squares = centre + total / max(m, 1), squares - total**2 / max(m, 1)
        if centre.dtype != np.float64:
            # dimensions whose squares exceed the range of float32, or fall below it
            extreme = ~(np.isfinite(squares) & (squares > _SMALL_SQUARES))
            if extreme.any():
                wide = cls.of(embeddings[:, extreme].astype(np.float64), order)
                mean[extreme], squares[extreme] = wide.mean, wide.squares
        return cls(m, mean, squares, rounding)

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of all parts together.

        Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
        1979, equation 2.1.
        """
        whole, *others = [part for part in parts if part.count] or parts
        for part in others:
            count = whole.count + part.count
            difference = part.mean - whole.mean
            whole = cls(
                count,
                whole.mean + difference * (part.count / count),
                whole.squares + part.squares + difference**2 * (whole.count * part.count / count),
                max(whole.rounding, part.rounding),
            )
        return whole

    @property
    def std(self) -> FloatArray:
        """(D,) standard deviation with ddof 1; 0 in a dimension that is constant up to rounding, or below 2 rows."""
        if self.count < 2:
            return np.zeros_like(self.mean)
        std = np.sqrt(np.maximum(self.squares, 0.0) / (self.count - 1))
        return np.asarray(np.where(std > self.rounding * np.abs(self.mean), std, 0.0))


def mean_and_std(embeddings: NDArray[Any], order: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
    """Return mean (D,) and standard deviation (D,) of embeddings (M, D); see :class:`Moments`."""
    moments = Moments.of(embeddings, order)
    return moments.mean, moments.std


def reference_moments(reference: Any, x: NDArray[Any], names: NDArray[Any]) -> Moments:
    """Return the moments that phi standardizes with.

    Args:
        reference: (M, D) embeddings, or their moments; None: the embeddings.
        x: (N, D) embeddings.
        names: (N,) names of the examples.

    Raises:
        DataError: The reference has other dimensions.
    """
    if reference is None:  # sum in the order of the ids: the last bit must not depend on the order of the rows
        return Moments.of(x, np.argsort(names, kind="stable"))
    moments = reference if isinstance(reference, Moments) else Moments.of(as_rows(reference, "reference"))
    if len(moments.mean) != x.shape[1]:
        raise DataError(f"reference must have {x.shape[1]} dimensions like embeddings, got {len(moments.mean)}")
    return moments
