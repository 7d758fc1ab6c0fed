"""Standardized features as blocks of rows: in memory if they fit, else read again in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_rows
from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.errors import DataError

_CELLS_AT_ONCE = 1 << 22  # features of a block that is widened to float32
_CELLS_IN_MEMORY = 1 << 28  # features that are standardized once and kept, 1 GiB
_CELLS_IN_DOUBLE = 1 << 18  # features of problems that are so small that double precision costs nothing
_RESOLUTION = 1e-7  # a standard deviation below this share of the mean is rounding


def raw_blocks(features: Any) -> Callable[[], Iterator[NDArray[Any]]]:
    """Return a function that yields the rows of features in blocks (n, D), each time it is called.

    Args:
        features: (N, D) floats as a tensor, an array or a memory map; or an iterable of such blocks, which must start
            again each time it is iterated, such as a list or an object with ``__iter__`` (no generator).

    Raises:
        DataError: The iterable cannot be iterated twice.

    >>> [block.shape for block in raw_blocks([np.zeros((2, 3)), np.zeros((1, 3))])()]
    [(2, 3), (1, 3)]
    """
    if _is_matrix(features):
        rows = as_rows(features, "features", finite=False)
        size = max(1, _CELLS_AT_ONCE // max(rows.shape[1], 1))
        return lambda: (rows[start : start + size] for start in range(0, len(rows), size))
    if iter(features) is features:
        raise DataError(
            "features are read several times; pass a list of blocks, or an object whose __iter__ starts again, "
            "not a generator."
        )
    return lambda: (as_rows(block, "a block of features", finite=False) for block in features)


def _is_matrix(features: Any) -> bool:
    if isinstance(features, Tensor) or hasattr(features, "__array__"):
        return True
    if not isinstance(features, Iterable):
        raise DataError(f"features must be a matrix or an iterable of matrices; got {type(features).__name__}.")
    if not isinstance(features, list | tuple):
        return False
    return not features or np.ndim(features[0]) < 2


class StandardizedBlocks:
    """Features minus their mean over their standard deviation, as blocks with one row per *feature*.

    The features that have entered the model come first: :meth:`promote` changes the order, and :meth:`blocks` yields
    the first ones only. Products with a few active features then touch nothing else.

    Attributes:
        mean: (D,) float64, weighted; exact in float32, as it is subtracted in single precision.
        dtype: float32; float64 for small problems, where sums over few examples do not average rounding out.
        std: (D,) float64, weighted; 1 with ``standardize=False``, and 0 for a constant feature, which contributes 0.
        order: (D,) int64, the column of the input at each position.
    """

    def __init__(
        self, features: Any, mass: FloatArray, *, standardize: bool = True, device: str | torch.device = "cpu"
    ) -> None:
        self._raw, self._device = raw_blocks(features), torch.device(device)
        self.mean, std = _moments(self._raw, mass)
        varies = std > _RESOLUTION * np.abs(self.mean)
        self.std = np.where(varies, std if standardize else 1.0, 0.0)
        self.order: IntArray = np.arange(len(std))
        cells = len(mass) * len(std)
        self.dtype = torch.float64 if cells <= _CELLS_IN_DOUBLE else torch.float32
        self._kept: list[Tensor] | None = None
        if cells <= _CELLS_IN_MEMORY:
            self._kept = list(self._read(len(std)))

    @property
    def dim(self) -> int:
        """D, the number of features."""
        return len(self.std)

    def blocks(self, count: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a block, and its first features: (count, n), on the device; do not write to it."""
        first = 0
        kept = self._read(count) if self._kept is None else (block[:count] for block in self._kept)
        for block in kept:
            rows = slice(first, first + block.shape[1])
            yield rows, block
            first = rows.stop

    def promote(self, positions: IntArray, count: int) -> IntArray:
        """Move features from behind the first ``count`` to directly behind them.

        Args:
            positions: (p,) int64 >= count, ascending.
            count: Number of features that keep their positions.

        Returns:
            (D,) int64, the former position of each position.
        """
        moved = np.arange(self.dim)
        for target, source in enumerate(positions.tolist(), start=count):  # sources ascend: none lies before its target
            moved[[target, source]] = moved[[source, target]]
        if self._kept is not None:
            changed = torch.from_numpy(np.flatnonzero(moved != np.arange(self.dim))).to(self._device)
            sources = torch.from_numpy(moved).to(self._device)[changed]
            for block in self._kept:
                block[changed] = block[sources]
        self.order = self.order[moved]
        return moved

    def _read(self, count: int) -> Iterator[Tensor]:
        columns = self.order[:count]
        scale = np.divide(1.0, self.std, out=np.zeros_like(self.std), where=self.std > 0)
        mean, factor = (
            torch.from_numpy(one[columns]).to(self._device, self.dtype)[:, None] for one in (self.mean, scale)
        )
        for raw in self._raw():
            block = torch.from_numpy(np.ascontiguousarray(raw[:, columns].T)).to(self._device, self.dtype)
            yield block.sub_(mean).mul_(factor)


def _moments(raw: Callable[[], Iterator[NDArray[Any]]], mass: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weighted mean and standard deviation of each feature, in one pass.

    Args:
        raw: Yields blocks (n, D).
        mass: (N,) float64, sum 1.

    Raises:
        DataError: Features that are not finite, blocks of different width, or another number of rows than labels.
    """
    first, centre = 0, np.zeros(0)
    total = squares = centre
    for block in raw():
        rows = as_rows(block, f"features from row {first} on").astype(np.float64)
        if first == 0:
            centre = rows.mean(axis=0)
            total, squares = np.zeros_like(centre), np.zeros_like(centre)
        if rows.shape[1] != len(centre):
            raise DataError(f"blocks of features must have equal width; got {len(centre)} and {rows.shape[1]}.")
        m = mass[first : first + len(rows)]
        if len(m) != len(rows):
            raise DataError(f"features must have one row per label; there are more than {len(mass)} rows.")
        rows -= centre
        total += m @ rows
        squares += m @ np.square(rows, out=rows)
        first += len(rows)
    if first != len(mass) or not first:
        raise DataError(f"features must have one row per label; got {first} rows for {len(mass)} labels.")
    mean = (centre + total).astype(np.float32).astype(np.float64)
    return mean, np.sqrt(np.maximum(squares - total**2, 0.0))
