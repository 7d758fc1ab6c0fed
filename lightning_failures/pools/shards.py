"""The file of one block of a pool: written once and verified whenever it is read.

A shard is a safetensors file with a row for each example. Each column has its own checksum, so that the few bytes an
example that a merge needs are verified without reading the embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.safetensors_io import (
    damage_reported,
    little_endian,
    read_array,
    read_header,
    start_checksum,
    write_arrays,
)
from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders.cache.shard_file import to_half

POOL_UNLABELLED = -1
"""Label of an example without one."""

_FORMAT = "lightning_failures pool shard 1"


@dataclass(frozen=True, eq=False)
class PoolShard:
    """The examples of one block of consecutive ids.

    Attributes:
        ids: (n,) int64, indices of the dataset, ascending: those of the block without those that are left out.
        labels: (n,) int64; ``POOL_UNLABELLED`` where the pool has none.
        keys: (n, 2) int64, content keys: equal for exact copies.
        embeddings: (n, D) float16 or float32, or None where they are not kept.
        values: (n,) float32, decision value of each example by the SVM of its class, NaN if the class has none; None
            before scoring.
        directions: Digest of the directions that the values come from.
        left_out: Reason for each example that could not be embedded, by id, ascending. A file holds the first
            reasons only; later ones are empty.
    """

    ids: Tensor
    labels: Tensor
    keys: Tensor
    embeddings: Tensor | None = None
    values: Tensor | None = None
    directions: str | None = None
    left_out: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


_COLUMNS = ("ids", "labels", "keys", "embeddings", "values")
_LEFT_OUT = "left_out"  # a column of ids, in files of blocks that are not whole
_MAX_REASONS = 100


def directions_digest(directions: FailureDirections) -> str:
    """Return 32 hex digits over everything that determines the decision value of an embedding."""
    hasher = xxhash.xxh3_128(str(directions.whiten).encode())
    for tensor in (directions.classes, directions.weight, directions.bias, directions.mean, directions.std):
        hasher.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().numpy().data)
    return hasher.hexdigest()


def round_to_half(embeddings: Tensor) -> Tensor:
    """Round embeddings (n, D) to float16, unless that moves a row by more than 2**-10 of its length.

    >>> round_to_half(torch.tensor([[0.6, 0.8]])).dtype, round_to_half(torch.tensor([[1e6, 0.0]])).dtype
    (torch.float16, torch.float32)
    """
    half, fits = to_half(embeddings)
    return half if bool(fits.all()) else embeddings


def score_shard(shard: PoolShard, directions: FailureDirections) -> PoolShard:
    """Return the shard with decision values, computed from the embeddings as they are stored.

    Scoring an existing shard therefore gives the same values as embedding and scoring it in one run.

    Raises:
        DataError: The directions were fitted to embeddings of another length.
    """
    assert shard.embeddings is not None
    values = directions.decision_values(shard.embeddings.float(), shard.labels)
    return replace(shard, values=values, directions=directions_digest(directions))


def write_pool_shard(shard: PoolShard, path: Path, *, pool: str) -> None:
    """Write a file that any safetensors reader opens. Equal shards are equal files.

    Args:
        shard: What to write.
        path: The file; an existing one is replaced.
        pool: Digest of the pool that the shard belongs to.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name in _COLUMNS:
        column: Tensor | None = getattr(shard, name)
        if column is not None:
            columns[name] = little_endian(column.numpy())
    metadata = {"format": _FORMAT, "pool": pool, "directions": shard.directions or ""}
    if shard.left_out:
        columns[_LEFT_OUT] = little_endian(np.array(sorted(shard.left_out), dtype=np.int64))
        reasons = [shard.left_out[i] for i in sorted(shard.left_out)][:_MAX_REASONS]
        metadata["reasons"] = json.dumps(reasons)
    checksums = {name: _checksum(metadata, name, column) for name, column in columns.items()}
    write_arrays(path, columns, metadata | {"checksums": json.dumps(checksums)})


def read_pool_shard(path: Path, block: range, *, pool: str, embeddings: bool = True) -> PoolShard:
    """Read a shard and verify every byte that is read.

    Args:
        path: The file.
        block: The ids that the shard must hold.
        pool: Digest of the pool that the shard must belong to.
        embeddings: Whether to read the embeddings, if the shard has them.

    Raises:
        DamagedShardError: The content is not what was written for this block of this pool.
        OSError: The file cannot be read.
    """
    with damage_reported(), path.open("rb") as file:
        header = read_header(file)
        metadata = header.metadata
        if metadata["format"] != _FORMAT or metadata["pool"] != pool:
            raise ValueError("it belongs to another pool")
        checksums = json.loads(metadata["checksums"])
        if set(checksums) != set(header.entries):
            raise ValueError("wrong columns")
        columns: dict[str, Tensor] = {}
        for name in (*_COLUMNS, _LEFT_OUT):
            if name not in header.entries or (name == "embeddings" and not embeddings):
                continue
            column = read_array(file, header.entries[name])
            if _checksum(metadata, name, column) != checksums[name]:
                raise ValueError(f"wrong checksum of {name}")
            columns[name] = torch.from_numpy(column)
        without = columns.pop(_LEFT_OUT, torch.empty(0, dtype=torch.int64)).tolist()
        ids = columns["ids"].tolist()
        if (
            sorted([*ids, *without]) != list(block)
            or ids != sorted(ids)
            or any(len(column) != len(ids) for column in columns.values())
        ):
            raise ValueError("it holds other examples")
        reasons = json.loads(metadata.get("reasons", "[]"))
        left_out = dict(zip_longest(without, reasons, fillvalue=""))
        return PoolShard(**columns, directions=metadata["directions"] or None, left_out=left_out)


def _checksum(metadata: Mapping[str, str], name: str, column: NDArray[Any]) -> str:
    """Return the checksum of a column and of its description in the header."""
    about = [_FORMAT, metadata["pool"], metadata["directions"], name, str(column.dtype), column.shape]
    if "reasons" in metadata:
        about.append(metadata["reasons"])
    hasher = start_checksum(about)
    hasher.update(column.data)
    return hasher.hexdigest()
