"""Convert and check tensors and arrays of callers, once, before the mathematics sees them."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.errors import DataError

_CELLS_AT_ONCE = 1 << 20


def as_array(values: Any) -> NDArray[Any]:
    """Return a tensor, array or sequence as a NumPy array, without a copy if possible; do not write to it.

    Half precision becomes float32, because NumPy has no bfloat16 and sums of float16 lose digits.
    """
    array = _as_numpy(values)
    return widened(array) if array.dtype == np.float16 else array


def as_matrix(values: Any, name: str) -> NDArray[Any]:
    """Return (N, D) finite floats as float32 or float64.

    Args:
        values: A tensor, array or sequence.
        name: Name of the argument, for error messages.

    Raises:
        DataError: ``values`` is not two-dimensional, not numeric, or not finite.
    """
    rows = as_rows(values, name)
    return widened(rows) if rows.dtype == np.float16 else rows


def as_rows(values: Any, name: str, *, finite: bool = True) -> NDArray[Any]:
    """Return (N, D) floats in their own dtype, float16, float32 or float64, in memory or mapped from disk.

    The data are not copied, so that a large matrix stays in place and its user widens the rows of one class at a time.
    Only bfloat16 tensors, which NumPy lacks, and integers become float32.

    Args:
        values: A tensor, array or sequence.
        name: Name of the argument, for error messages.
        finite: Whether all values must be finite.

    Raises:
        DataError: ``values`` is not two-dimensional, not numeric, or not finite.

    >>> as_rows(np.ones((2, 3), dtype=np.float16), "x").dtype
    dtype('float16')
    """
    array = _as_numpy(values)
    if array.ndim != 2:
        raise DataError(f"{name} must have shape (N, D); got {array.shape}.")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must hold numbers; got dtype {array.dtype}.")
    if array.dtype.kind != "f":
        return array.astype(np.float32)
    is_finite = finite_rows_of(array) if finite else np.ones(0, dtype=np.bool_)
    if not is_finite.all():
        n_bad = np.count_nonzero(~is_finite)
        raise DataError(f"{name} must be finite; {n_bad} rows are not, the first is row {is_finite.argmin()}.")
    return array


def finite_rows_of(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows of (N, D) numbers are finite, (N,) bool, block by block so that the whole is never copied."""
    finite = np.ones(len(array), dtype=np.bool_)
    if array.dtype.kind != "f":
        return finite
    size = max(1, _CELLS_AT_ONCE // max(array.shape[1], 1))
    for start in range(0, len(array), size):
        finite[start : start + size] = _finite_rows(array[start : start + size])
    return finite


def widened(array: NDArray[Any], dtype: Any = np.float32) -> NDArray[Any]:
    """Return a copy of an array of floats in another precision.

    From half precision to single this takes a tenth of the time of NumPy, which has no vector instructions for it.

    >>> widened(np.array([[0.5]], dtype=np.float16)).dtype
    dtype('float32')
    """
    if array.dtype != np.float16 or not array.size:
        return array.astype(dtype)
    wide: NDArray[Any] = torch.from_numpy(_writeable(array)).float().numpy()
    return wide.astype(dtype, copy=False)


def as_vector(values: Any, name: str, length: int) -> NDArray[Any]:
    """Return (N,) integers, such as labels or ids; ids may also be strings.

    Args:
        values: A tensor, array or sequence.
        name: Name of the argument, for error messages.
        length: The required N.

    Raises:
        DataError: ``values`` has another shape, or fractional values.
    """
    array = as_array(values)
    if array.shape != (length,):
        raise DataError(f"{name} must have shape ({length},); got {array.shape}.")
    if array.size and array.dtype.kind == "f" and np.all(array == np.floor(array)):
        array = array.astype(np.int64)
    if array.size and array.dtype.kind not in "iubUS":
        raise DataError(f"{name} must hold integers; got dtype {array.dtype}.")
    return array.astype(np.int64) if array.dtype.kind in "iubf" else array


def as_mask(values: Any, name: str, length: int) -> NDArray[np.bool_]:
    """Return (N,) bool.

    Args:
        values: A tensor, array or sequence of booleans, or of 0 and 1.
        name: Name of the argument, for error messages.
        length: The required N.

    Raises:
        DataError: ``values`` has another shape, or other values.
    """
    array = as_array(values)
    if array.shape != (length,):
        raise DataError(f"{name} must have shape ({length},); got {array.shape}.")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise DataError(f"{name} must be boolean; got dtype {array.dtype} with values other than 0 and 1.")
    return array.astype(np.bool_)


def finite_rows(values: Tensor) -> Tensor:
    """Return which rows of (N, ...) hold neither NaN nor infinite values: (N,) bool, on the device of the values.

    >>> finite_rows(torch.tensor([[1.0, 2.0], [float("nan"), 3.0]]))
    tensor([ True, False])
    """
    if not values.is_floating_point() or values.numel() == 0:
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    return torch.isfinite(values).flatten(1).all(1)


def is_cpu(device: str | torch.device) -> bool:
    """Return whether a device is the CPU.

    >>> is_cpu("cpu"), is_cpu("cuda:1")
    (True, False)
    """
    return torch.device(device).type == "cpu"


def on_device(array: NDArray[Any], device: str | torch.device) -> Any:
    """Return a tensor on the device, or for the CPU the array itself.

    Tensors and arrays share ``@``, ``sum(axis=...)`` and ``mean(axis=...)``, so the same code handles both. NumPy's
    BLAS multiplied a few hundred rows in a quarter of the time that torch took on the same CPU.
    """
    return array if is_cpu(device) else torch.from_numpy(array).to(device)


@overload
def unit_vectors(vectors: Tensor) -> Tensor: ...
@overload
def unit_vectors(vectors: NDArray[Any]) -> NDArray[Any]: ...
def unit_vectors(vectors: Tensor | NDArray[Any]) -> Tensor | NDArray[Any]:
    """Scale vectors to unit length; a vector of length zero stays zero.

    Args:
        vectors: (..., D) float32 or float64, a tensor or an array. Half precision is too coarse for squared lengths:
            widen it first.

    Returns:
        (..., D) of the same kind and dtype; the input is unchanged.

    >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    if isinstance(vectors, Tensor):
        norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return vectors / norms.clamp(min=torch.finfo(vectors.dtype).tiny)
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
    scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.asarray(vectors * scales[..., None])


def _writeable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that torch accepts without a warning: writeable, with strides that are not negative."""
    return array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()


def _as_numpy(values: Any) -> NDArray[Any]:
    """Return a NumPy array of the same dtype; dtypes that NumPy lacks, such as bfloat16, become float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        is_unknown_to_numpy = values.is_floating_point() and values.element_size() < 4 and values.dtype != torch.float16
        values = (values.float() if is_unknown_to_numpy else values).numpy()
    return np.asarray(values)


def _finite_rows(block: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows (n, D) are finite: (n,) bool."""
    if block.dtype == np.float16 and block.size:  # ten times as fast as isfinite, which is not vectorised for float16
        return np.asarray((block.view(np.uint16) & 0x7FFF).max(axis=1) < 0x7C00)
    return np.asarray(np.isfinite(block).all(axis=1))


def defined(value: Any) -> float | None:
    """Return a number as a float, or None if it is not finite.

    >>> defined(torch.tensor(0.5)), defined(float("nan"))
    (0.5, None)
    """
    return float(value) if np.isfinite(float(value)) else None
