"""Write and read safetensors files whose every byte is verified.

The ``safetensors`` package stores no checksum and maps whole files into memory. Here the caller keeps checksums in the
metadata, and arrays are read one by one, so that a part of a file can be verified without the rest, and a failing disk
is an exception instead of the signal that ends a process which touches a broken memory map.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from lightning_failures.core.atomic import replacing

DTYPES: dict[str, np.dtype[Any]] = {
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
"""Name of a dtype in the header -> the dtype, for the dtypes that this package stores."""

_MAX_HEADER_BYTES = 2**20
_METADATA = "__metadata__"


class DamagedShardError(Exception):
    """The content of a file is not what was written."""


@dataclass(frozen=True)
class ArrayEntry:
    """Where an array lies in a file.

    Attributes:
        dtype: Its dtype in the file, little-endian.
        shape: Its shape.
        start: Position of its first byte in the file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        entries: The arrays by name, in the order of the file.
        metadata: The texts stored with them.
        file_size: Size of the whole file in bytes.
    """

    entries: Mapping[str, ArrayEntry]
    metadata: Mapping[str, str]
    file_size: int


def start_checksum(about: Sequence[Any]) -> xxhash.xxh3_128:
    """Return a hasher that has seen ``about``, values that JSON can hold; the caller adds the data."""
    return xxhash.xxh3_128(json.dumps(about).encode())


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as it lies in a file: contiguous and little-endian."""
    contiguous = np.ascontiguousarray(array)
    return contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], *, alignment: int = 8
) -> None:
    """Write a file that any safetensors reader opens; it appears under its name whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        arrays: Arrays by name, as :func:`little_endian` returns them, in the order in which they are stored.
        metadata: Texts for the header.
        alignment: The first array starts at a multiple of this many bytes.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        dtype_name = next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
        header[name] = {"dtype": dtype_name, "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    header[_METADATA] = dict(metadata)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data)


def read_header(file: BinaryIO) -> Header:
    """Read the header of an open file and check it against the size of the file.

    Raises:
        ValueError: The file is not safetensors, is truncated, or its arrays do not follow one another.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError("header too long")
    header = json.loads(file.read(length))
    metadata = header.pop(_METADATA)
    entries: dict[str, ArrayEntry] = {}
    position = 8 + length
    for name, described in header.items():
        shape = tuple(described["shape"])
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"wrong shape of {name}")
        entry = ArrayEntry(DTYPES[described["dtype"]], shape, position)
        offsets = [position - 8 - length, position - 8 - length + entry.nbytes]
        if described["data_offsets"] != offsets:
            raise ValueError(f"wrong position of {name}")
        entries[name] = entry
        position += entry.nbytes
    if os.fstat(file.fileno()).st_size != position:
        raise ValueError("wrong size")
    return Header(entries, metadata, position)


def read_array(file: BinaryIO, entry: ArrayEntry) -> NDArray[Any]:
    """Read one array of an open file into memory of its own, which may be written to.

    Raises:
        ValueError: The file has become shorter since its header was read.
    """
    content = bytearray(entry.nbytes)
    file.seek(entry.start)
    if file.readinto(content) != entry.nbytes:  # type: ignore[attr-defined]  # BinaryIO does not declare it
        raise ValueError("wrong size")
    return np.frombuffer(content, entry.dtype).reshape(entry.shape)


@contextlib.contextmanager
def damage_reported() -> Iterator[None]:
    """Turn every exception but those of the disk into a :class:`DamagedShardError`.

    A flipped bit in a header can lead to almost any exception while the header is interpreted.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise DamagedShardError(str(error) or type(error).__name__) from error
