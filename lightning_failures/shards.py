"""The file format of the embedding cache: sorted keys and embeddings, verified when opened, read through a memory map.

A shard is a safetensors file that is written once: ``keys`` (2, N) int64, sorted, and ``embeddings`` (N, D) float16 or
float32, with a checksum over both and over what the header says of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["DTYPES", "SUFFIX", "TEMPORARY", "DamagedShardError", "Shard", "read_shard", "write_shard"]

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"
DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}

_FORMAT = "lightning_failures embeddings 1"

Array = npt.NDArray[Any]


class DamagedShardError(Exception):
    """What a file holds is not what was written."""


@dataclass(frozen=True)
class Shard:
    """Sorted keys and their embeddings, in memory or mapped from a file.

    Attributes:
        keys: (2, N) int64; the first row ascends.
        embeddings: (N, D) float16 or float32.
    """

    keys: Array
    embeddings: Array

    @classmethod
    def sorted(cls, keys: Array, embeddings: Array) -> Shard:
        """Bring keys (N, 2) and embeddings (N, D) into order."""
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        return cls(np.ascontiguousarray(keys[order].T), np.ascontiguousarray(embeddings[order]))

    @property
    def nbytes(self) -> int:
        """Of keys and embeddings."""
        return self.keys.nbytes + self.embeddings.nbytes

    def find(self, keys: Array) -> Array:
        """Positions of keys (M, 2), -1 where absent: (M,) int64."""
        first, second = self.keys
        at = np.searchsorted(first, keys[:, 0])
        found = np.full(len(keys), -1)
        rows = np.arange(len(keys))
        while len(rows):  # once, but for keys that share their first half
            rows = rows[at[rows] < len(first)]
            rows = rows[first[at[rows]] == keys[rows, 0]]
            same = second[at[rows]] == keys[rows, 1]
            found[rows[same]] = at[rows[same]]
            rows = rows[~same]
            at[rows] += 1
        return found


def _checksum(fingerprint: str, shape: Iterable[int], dtype: str, *data: Any) -> str:
    hasher = xxhash.xxh3_128(json.dumps([_FORMAT, fingerprint, list(shape), dtype]).encode())
    for part in data:
        hasher.update(part)
    return hasher.hexdigest()


def write_shard(shard: Shard, folder: Path, fingerprint: str) -> Path:
    """Write a file that any safetensors reader opens; it appears under its name whole or not at all."""
    dtype = next(name for name, kind in DTYPES.items() if kind == shard.embeddings.dtype)
    keys = shard.keys.astype("<i8", copy=False)
    checksum = _checksum(fingerprint, shard.embeddings.shape, dtype, keys, shard.embeddings)
    header = {
        "__metadata__": {"format": _FORMAT, "fingerprint": fingerprint, "checksum": checksum},
        "keys": {"dtype": "I64", "shape": list(keys.shape), "data_offsets": [0, keys.nbytes]},
        "embeddings": {
            "dtype": dtype,
            "shape": list(shard.embeddings.shape),
            "data_offsets": [keys.nbytes, shard.nbytes],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # arrays mapped from the file are aligned
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}{TEMPORARY}"
    target = folder / f"{checksum}{SUFFIX}"
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(keys.data)
            file.write(shard.embeddings.data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def read_shard(path: Path, fingerprint: str) -> Shard:
    """Map a shard into memory and verify every byte of it.

    Raises:
        DamagedShardError: The content is not what was written for this fingerprint.
        OSError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 2**20:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        (two, n), (rows, dim) = header["keys"]["shape"], header["embeddings"]["shape"]
        kind = header["embeddings"]["dtype"]
        expected = 8 + length + 16 * n + n * dim * DTYPES[kind].itemsize
        if (two, rows) != (2, n) or n < 1 or dim < 1 or size != expected:
            raise ValueError("sizes do not agree")
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
        if _checksum(fingerprint, (rows, dim), kind, data) != header["__metadata__"]["checksum"]:
            raise ValueError("wrong checksum")
        keys = np.asarray(data[: 16 * n]).view("<i8").reshape(2, n)
        embeddings = np.asarray(data[16 * n :]).view(DTYPES[kind]).reshape(n, dim)
    except OSError:
        raise
    except Exception as error:  # whatever a flipped bit in a header leads to
        raise DamagedShardError(str(error) or type(error).__name__) from error
    with contextlib.suppress(OSError):
        os.utime(path)  # "recently used", for eviction
    return Shard(keys, embeddings)
