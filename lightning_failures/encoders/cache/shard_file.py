"""The file format of the embedding cache: an index in memory and embeddings on disk, verified when opened.

A shard is a safetensors file that is written once. It holds ``keys`` (2, N) int64, sorted; ``places`` (N,) int32, the
row of each key's embedding; and ``embeddings`` (N, D) float16 or float32 in the order of the writer, so that embeddings
written together are stored together. One checksum covers the arrays and their description in the header. The keys of
an open shard are held in memory; embeddings are read through a memory map.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
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
_KEY_BYTES = 16
_PLACE_BYTES = 4
_HALF_BYTES = 2
_GAP = 2**16  # bytes: a shorter gap is read along, about what a disk reads in the time of a seek
_READ_BYTES = 2**20  # bytes read at once: enough for a fast disk, few enough for a processor's cache
_ALIGNMENT = 64  # bytes: arrays mapped from the file are aligned

Array = npt.NDArray[Any]


def bytes_per_embedding(dim: int) -> int:
    """Return the bytes that one embedding takes on disk: its index entry and ``dim`` values in float16.

    >>> bytes_per_embedding(512)
    1044
    """
    return _KEY_BYTES + _PLACE_BYTES + _HALF_BYTES * dim


@dataclass(frozen=True)
class Shard:
    """Embeddings with an index by key, in memory or mapped from a file.

    Attributes:
        keys: (2, N) int64; the first row ascends.
        places: (N,) int32: the row of ``embeddings`` that belongs to each key.
        embeddings: (N, D) float16 or float32, in any order.
        file: The mapped file, which ends with the embeddings; None for a shard in memory.
        file_size: Size of the file in bytes.
    """

    keys: Array
    places: Array
    embeddings: Array
    file: Path | None = None
    file_size: int = 0

    @classmethod
    def of(cls, keys: Array, embeddings: Array) -> Shard:
        """Index embeddings (N, D), which are not copied, by keys (N, 2)."""
        order = key_order(keys.T)
        return cls(np.ascontiguousarray(keys[order].T), order.astype(np.int32), embeddings)

    @property
    def nbytes(self) -> int:
        """Size of keys, places and embeddings in bytes."""
        return self.keys.nbytes + self.places.nbytes + self.embeddings.nbytes

    @property
    def truncated(self) -> bool:
        """Whether the file became shorter after it was opened; reading lost bytes through the map ends the process."""
        try:
            return self.file is not None and self.file.stat().st_size < self.file_size
        except OSError:  # an evicted file stays readable through its map
            return False

    def find(self, keys: Array) -> Array:
        """Return the embedding row of each key (M, 2), -1 if absent: (M,) int64. Sorted keys are found fastest."""
        found = find_sorted(self.keys, keys)
        return np.where(found >= 0, self.places[found], -1) if len(self.places) else found

    def without_index(self) -> Shard:
        """Return the shard without its keys, for a store that has an index of all shards."""
        return replace(self, keys=self.keys[:, :0].copy(), places=self.places[:0].copy())

    def prefetch(self, places: Array) -> None:
        """Ask the operating system to read ahead the rows ``places`` (M,), ascending, with few bytes between them."""
        if self.file is None or not hasattr(os, "posix_fadvise"):
            return
        width = self.embeddings[0].nbytes
        with contextlib.suppress(OSError), self.file.open("rb") as file:  # a failure costs only speed
            starts = self.file_size - self.embeddings.nbytes + places * width
            gaps = np.flatnonzero(np.diff(starts) > width + _GAP)
            run_starts = starts[np.r_[0, gaps + 1]].tolist()
            last_rows = starts[np.r_[gaps, -1]].tolist()
            for start, last in zip(run_starts, last_rows, strict=True):
                os.posix_fadvise(file.fileno(), start, last + width - start, os.POSIX_FADV_WILLNEED)


def key_order(keys: Array) -> Array:
    """Return the order in which keys (2, N) ascend, equal keys as they come: (N,) int64.

    Keys are hashes, whose first halves differ: sorting these alone takes no time where the keys of one shard, or of
    shards that follow each other, ascend already. The second halves are sorted only where two first halves are equal.
    """
    order = np.argsort(keys[0], kind="stable")
    first = keys[0][order]
    return np.lexsort((keys[1], keys[0])) if (first[1:] == first[:-1]).any() else order


def find_sorted(sorted_keys: Array, keys: Array) -> Array:
    """Return the column of each key (M, 2) among keys (2, N) whose first row ascends; -1 if absent: (M,) int64."""
    first, second = sorted_keys
    positions = np.searchsorted(first, keys[:, 0])
    found = np.full(len(keys), -1)
    rows = np.arange(len(keys))
    # keys that share their first half are neighbours: step through them until the second half matches
    while len(rows):
        rows = rows[positions[rows] < len(first)]
        rows = rows[first[positions[rows]] == keys[rows, 0]]
        matches = second[positions[rows]] == keys[rows, 1]
        found[rows[matches]] = positions[rows[matches]]
        rows = rows[~matches]
        positions[rows] += 1
    return found


class Pending:
    """Embeddings of one dtype that have not been written yet, in the order in which they were added."""

    def __init__(self) -> None:
        self._row_of: dict[bytes, int] = {}
        self._blocks: list[Array] = []

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def embeddings(self) -> Array:
        """The embeddings (N, D)."""
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    def prefetch(self, places: Array) -> None:
        """Do nothing: pending embeddings are in memory."""

    def add(self, keys: Array, embeddings: Array) -> None:
        """Append embeddings (M, D) under keys (M, 2), which must be distinct and new."""
        if len(keys):
            rows = range(len(self), len(self) + len(keys))
            self._row_of.update(zip(_hashable(keys), rows, strict=True))
            self._blocks.append(embeddings)

    def find(self, keys: Array) -> Array:
        """Return the embedding row of each key (M, 2), -1 if absent: (M,) int64."""
        if not self._row_of:
            return np.full(len(keys), -1)
        return np.fromiter((self._row_of.get(key, -1) for key in _hashable(keys)), np.int64, len(keys))

    def shard(self, order: Array) -> Shard:
        """Return all embeddings as a shard.

        Args:
            order: Keys (M, 2) whose embeddings come first, in this order; keys that are not pending are ignored.
        """
        keys = np.frombuffer(b"".join(self._row_of), dtype=np.int64).reshape(-1, 2)
        first = [row for row in dict.fromkeys(self.find(order).tolist()) if row >= 0]
        if not first:
            return Shard.of(keys, self.embeddings)
        rows = np.concatenate([first, np.setdiff1d(np.arange(len(self)), first)])
        return Shard.of(keys[rows], self.embeddings[rows])


def _hashable(keys: Array) -> list[bytes]:
    pairs: list[bytes] = np.ascontiguousarray(keys).view("V16")[:, 0].tolist()
    return pairs


def to_half(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows (N, D) to float16.

    Returns:
        The rounded rows, and (N,) bool: whether rounding moved the row by at most 2**-10 of its length.
    """
    half = values.half()
    errors = torch.linalg.vector_norm(half.float() - values, dim=1, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
    return half, errors <= lengths / 1024


def write_shard(shard: Shard, folder: Path, fingerprint: str) -> Path:
    """Write a shard to a file named by its checksum, and return the path.

    Args:
        shard: The keys and embeddings.
        folder: The folder in which the file is created.
        fingerprint: Fingerprint of the encoder that computed the embeddings.
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


def read_shard(path: Path, fingerprint: str) -> Shard:
    """Verify every byte of a shard, load its index and map its embeddings into memory.

    Embeddings are verified by reading, not through the map: a failing disk then raises an error instead of the signal
    that ends the process, and only one buffer of embeddings is in memory. The map is made by ``torch.from_file``, which
    closes the file, unlike ``mmap``: a cache may have more shards than a process may have open files.

    Args:
        path: The file.
        fingerprint: Fingerprint of the encoder that the shard must belong to.

    Raises:
        DamagedShardError: The content is not what was written for this fingerprint.
        OSError: The file cannot be read.
    """
    try:
        with damage_reported(), path.open("rb") as file:
            # index
            header = read_header(file)
            if list(header.entries) != ["keys", "places", "embeddings"]:
                raise ValueError("wrong arrays")
            entry = header.entries["embeddings"]
            count, dim = entry.shape
            if header.entries["keys"].shape != (2, count) or count < 1 or dim < 1:
                raise ValueError("wrong shapes")
            keys = read_array(file, header.entries["keys"])
            places = read_array(file, header.entries["places"])

            # checksum over the index and, buffer by buffer, the embeddings
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
        os.utime(path)  # eviction removes the least recently opened shards first
    return Shard(keys, places, embeddings, path, header.file_size)


def _start_checksum(fingerprint: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> xxhash.xxh3_128:
    """Return a hasher that has seen what the header says of the embeddings."""
    dtype_name = next(name for name, known in DTYPES.items() if known == dtype)
    return start_checksum([_FORMAT, fingerprint, list(shape), dtype_name])
