"""One index of the keys of all open shards, so that a look-up costs the same whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_failures.encoders.cache.shard_file import Array, Shard, find_sorted, key_order


@dataclass(frozen=True)
class KeyIndex:
    """Where the embedding of each key is; 24 bytes for each key.

    Attributes:
        keys: (2, N) int64, distinct; the first row ascends.
        shard: (N,) int32, the number of the shard that holds the embedding.
        place: (N,) int32, its row in that shard.
    """

    keys: Array
    shard: Array
    place: Array

    @classmethod
    def empty(cls) -> KeyIndex:
        """Return the index of no shards."""
        return cls(np.empty((2, 0), dtype=np.int64), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.shard)

    def find(self, keys: Array) -> Array:
        """Return the entry of each key (M, 2), -1 if absent: (M,) int64. Sorted keys are found fastest."""
        return find_sorted(self.keys, keys)

    def with_shards(self, shards: Sequence[Shard], first_number: int) -> KeyIndex:
        """Return the index with the keys of more shards; a key that is already here keeps its place.

        Args:
            shards: The shards, which have their own indices.
            first_number: Number of the first of them; the others follow.
        """
        if not shards:
            return self
        keys = np.concatenate([self.keys, *(shard.keys for shard in shards)], axis=1)
        numbers = [np.full(len(shard.places), first_number + i, dtype=np.int32) for i, shard in enumerate(shards)]
        number = np.concatenate([self.shard, *numbers])
        place = np.concatenate([self.place, *(shard.places for shard in shards)])
        order = key_order(keys)  # of equal keys the earliest comes first
        keys = keys[:, order]
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        order = order[is_first]
        return KeyIndex(np.ascontiguousarray(keys[:, is_first]), number[order], place[order])

    def only(self, kept: Array) -> KeyIndex:
        """Return the index of those shards that a mask (S,) bool over their numbers selects, with new numbers."""
        rows = kept[self.shard] if len(self) else np.empty(0, dtype=bool)
        renumbered = (np.cumsum(kept) - 1).astype(np.int32)
        return KeyIndex(np.ascontiguousarray(self.keys[:, rows]), renumbered[self.shard[rows]], self.place[rows])

    def entries_of(self, numbers: Sequence[int]) -> Array:
        """Return the entries of some shards, in the order in which the embeddings lie in them: (n,) int64."""
        entries = np.flatnonzero(np.isin(self.shard, numbers))
        return entries[np.lexsort((self.place[entries], self.shard[entries]))]
