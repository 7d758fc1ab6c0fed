"""The file format of the embedding cache: an index in memory and embeddings on disk, verified when opened.

A shard is a safetensors file that is written once: ``keys`` (2, N) int64, sorted; ``places`` (N,) int32, the row of
each key; ``embeddings`` (N, D) float16 or float32 in the order of the writer, so that what is put together lies
together. One checksum covers them and what the header says of them. Opened, the index (20 bytes a row) is held in
memory, and embeddings are read through a memory map.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from lightning_failures.core.safetensors_io import (
    DTYPES,
    DamagedShardError,
    damage_reported,
    little_endian,
    read_array,
    read_header,
    start_checksum,
    write_arrays,
)

SUFFIX = ".safetensors"

_FORMAT = "lightning_failures embeddings 2"
_GAP = 2**16  # bytes that are read along rather than left out: about what a disk reads while it finds a place
_READ_BYTES = 2**20  # bytes read at once: enough for a fast disk, few enough for a processor's cache
_ALIGNMENT = 64  # bytes: arrays that are mapped from the file are aligned

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """Embeddings and where each key has its own, in memory or mapped from a file.

    Attributes:
        keys: (2, N) int64; the first row ascends.
        places: (N,) int32: the row of ``embeddings`` of each key.
        embeddings: (N, D) float16 or float32, in any order.
        file: The mapped file, which ends with the embeddings; None for those in memory.
        file_size: Its bytes.
    """

    keys: Array
    places: Array
    embeddings: Array
    file: Path | None = None
    file_size: int = 0

    @classmethod
    def of(cls, keys: Array, embeddings: Array) -> Shard:
        """Index keys (N, 2) of embeddings (N, D), which stay where they are."""
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        return cls(np.ascontiguousarray(keys[order].T), order.astype(np.int32), embeddings)

    @property
    def nbytes(self) -> int:
        """Of all three."""
        return self.keys.nbytes + self.places.nbytes + self.embeddings.nbytes

    @property
    def truncated(self) -> bool:
        """Whether the file lost bytes since it was opened: to read them through the map would end the process."""
        try:
            return self.file is not None and self.file.stat().st_size < self.file_size
        except OSError:  # evicted: what is mapped stays
            return False

    def find(self, keys: Array) -> Array:
        """Rows of the embeddings of keys (M, 2), -1 where absent: (M,) int64. Fastest for sorted keys."""
        first, second = self.keys
        at = np.searchsorted(first, keys[:, 0])
        found = np.full(len(keys), -1)
        rows = np.arange(len(keys))
        while len(rows):  # once, but for keys that share their first half
            rows = rows[at[rows] < len(first)]
            rows = rows[first[at[rows]] == keys[rows, 0]]
            same = second[at[rows]] == keys[rows, 1]
            found[rows[same]] = self.places[at[rows[same]]]
            rows = rows[~same]
            at[rows] += 1
        return found

    def prefetch(self, places: Array) -> None:
        """Ask the system for the rows (M,), ascending, that are read next: all at once, and little between them."""
        if self.file is None or not hasattr(os, "posix_fadvise"):
            return
        width = self.embeddings[0].nbytes
        with contextlib.suppress(OSError), self.file.open("rb") as file:  # only speed is lost
            starts = self.file_size - self.embeddings.nbytes + places * width
            gaps = np.flatnonzero(np.diff(starts) > width + _GAP)
            for first, last in zip(starts[np.r_[0, gaps + 1]].tolist(), starts[np.r_[gaps, -1]].tolist(), strict=True):
                os.posix_fadvise(file.fileno(), first, last + width - first, os.POSIX_FADV_WILLNEED)


class Pending:
    """Embeddings of one dtype that wait to be written, in the order in which they came."""

    def __init__(self) -> None:
        self._row_of: dict[bytes, int] = {}
        self._blocks: list[Array] = []

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def embeddings(self) -> Array:
        """(N, D)."""
        self._blocks = [np.concatenate(self._blocks)] if len(self._blocks) > 1 else self._blocks
        return self._blocks[0]

    def prefetch(self, places: Array) -> None:
        """Nothing: they are in memory."""

    def add(self, keys: Array, embeddings: Array) -> None:
        """Append embeddings (M, D) of keys (M, 2), all different and none of them here."""
        if len(keys):
            self._row_of.update(zip(_hashable(keys), range(len(self), len(self) + len(keys)), strict=True))
            self._blocks.append(embeddings)

    def find(self, keys: Array) -> Array:
        """As :meth:`Shard.find`."""
        if not self._row_of:
            return np.full(len(keys), -1)
        return np.fromiter((self._row_of.get(key, -1) for key in _hashable(keys)), np.int64, len(keys))

    def shard(self, order: Array) -> Shard:
        """All of them, those of the keys ``order`` (M, 2) in this order and before the others."""
        keys = np.frombuffer(b"".join(self._row_of), dtype=np.int64).reshape(-1, 2)
        moved = [row for row in dict.fromkeys(self.find(order).tolist()) if row >= 0]
        if not moved:
            return Shard.of(keys, self.embeddings)
        rows = np.concatenate([moved, np.setdiff1d(np.arange(len(self)), moved)])
        return Shard.of(keys[rows], self.embeddings[rows])


def _hashable(keys: Array) -> list[bytes]:
    pairs: list[bytes] = np.ascontiguousarray(keys).view("V16")[:, 0].tolist()
    return pairs


def write_shard(shard: Shard, folder: Path, fingerprint: str) -> Path:
    """Write a shard to a file that is named by its checksum, and return the path.

    Args:
        shard: Keys and embeddings.
        folder: Where the file is created.
        fingerprint: Of the encoder that the embeddings come from.
    """
    arrays = {
        "keys": little_endian(shard.keys),
        "places": little_endian(shard.places),
        "embeddings": little_endian(shard.embeddings),
    }
    hasher = _start_checksum(fingerprint, arrays["embeddings"].shape, arrays["embeddings"].dtype)
    for array in arrays.values():
        hasher.update(array.data)
    checksum = hasher.hexdigest()
    target = folder / f"{checksum}{SUFFIX}"
    metadata = {"format": _FORMAT, "fingerprint": fingerprint, "checksum": checksum}
    write_arrays(target, arrays, metadata, alignment=_ALIGNMENT)
    return target


def bytes_per_embedding(dim: int) -> int:
    """Return the bytes of one embedding of length ``dim`` in a shard: float16 values, a 128-bit key and its place.

    >>> bytes_per_embedding(512)
    1044
    """
    return 2 * dim + 16 + 4


def _start_checksum(fingerprint: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> xxhash.xxh3_128:
    """Return a hasher that has seen what the header says of the data."""
    dtype_name = next(name for name, known in DTYPES.items() if known == dtype)
    return start_checksum([_FORMAT, fingerprint, list(shape), dtype_name])


def to_half(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in float16, and for each whether rounding moves it by at most 2**-10 of its length."""
    half = values.half()
    error, length = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) for x in (half.float() - values, values))
    return half, error <= length / 1024


def read_shard(path: Path, fingerprint: str) -> Shard:
    """Verify every byte of a shard, keep its index and map its embeddings into memory.

    Embeddings are verified by reading, not through the map: a disk that fails is then an error instead of a signal that
    ends the process, and no more than a buffer of them is in memory. The file is closed again, as a map of Python's
    own is not: a cache may have more shards than a process may have files open.

    Raises:
        DamagedShardError: The content is not what was written for this fingerprint.
        OSError: The file cannot be read.
    """
    try:
        with damage_reported(), path.open("rb") as file:
            header = read_header(file)
            if list(header.entries) != ["keys", "places", "embeddings"]:
                raise ValueError("wrong arrays")
            entry = header.entries["embeddings"]
            count, dim = entry.shape
            if header.entries["keys"].shape != (2, count) or count < 1 or dim < 1:
                raise ValueError("wrong shapes")
            keys = read_array(file, header.entries["keys"])
            places = read_array(file, header.entries["places"])
            hasher = _start_checksum(fingerprint, entry.shape, entry.dtype)
            hasher.update(keys.data)
            hasher.update(places.data)
            buffer = memoryview(bytearray(_READ_BYTES))
            while read := file.readinto(buffer):
                hasher.update(buffer[:read])
            if hasher.hexdigest() != header.metadata["checksum"]:
                raise ValueError("wrong checksum")
            mapped = torch.from_file(str(path), shared=False, size=header.file_size, dtype=torch.uint8).numpy()
            embeddings = mapped[entry.start :].view(entry.dtype).reshape(entry.shape)
            embeddings.flags.writeable = False
    except DamagedShardError as error:
        if not path.exists():
            raise FileNotFoundError(f"{path} has just been removed") from error
        raise
    with contextlib.suppress(OSError):
        os.utime(path)  # "recently used", for eviction
    return Shard(keys, places, embeddings, path, header.file_size)
