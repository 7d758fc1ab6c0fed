"""The border between callers' tensors and arrays and the mathematics: converted and checked once, here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.errors import DataError

__all__ = ["as_array", "as_mask", "as_matrix", "as_vector"]


def as_array(values: Any) -> NDArray[Any]:
    """Return a tensor, array or sequence as a NumPy array, without a copy where possible; never write to it.

    Half precision becomes float32, because NumPy has no bfloat16 and sums of float16 lose digits.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() and values.element_size() < 4 else values).numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_matrix(values: Any, name: str) -> NDArray[Any]:
    """Return (N, D) finite floats as float32 or float64.

    Raises:
        DataError: Not two-dimensional, not numbers, or a value that is not finite.
    """
    array = as_array(values)
    if array.ndim != 2:
        raise DataError(f"{name} must have shape (N, D), got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise DataError(f"{name} has {np.count_nonzero(~finite)} rows that are not finite, first row {finite.argmin()}")
    return array


def as_vector(values: Any, name: str, length: int) -> NDArray[Any]:
    """Return (N,) whole numbers, labels or ids, as they came; ids may be strings.

    Raises:
        DataError: Another length than ``length``, or fractional values.
    """
    array = as_array(values)
    if array.shape != (length,):
        raise DataError(f"{name} must have shape ({length},), got {array.shape}")
    if array.size and array.dtype.kind == "f" and np.all(array == np.floor(array)):
        array = array.astype(np.int64)
    if array.size and array.dtype.kind not in "iubUS":
        raise DataError(f"{name} must hold integers, got dtype {array.dtype}")
    return array.astype(np.int64) if array.dtype.kind in "iubf" else array


def as_mask(values: Any, name: str, length: int) -> NDArray[np.bool_]:
    """Return (N,) bool.

    Raises:
        DataError: Another length than ``length``, or values other than true and false.
    """
    array = as_array(values)
    if array.shape != (length,):
        raise DataError(f"{name} must have shape ({length},), got {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise DataError(f"{name} must be boolean, got dtype {array.dtype} with other values than 0 and 1")
    return array.astype(np.bool_)
